// Points to voxels: which cells are occupied, in ascending order, and the mean of the first points of each.
// The same as altermoma.ops.voxels.Voxeliser, bit by bit.

// The column of each point's cell and its bit, or -1; occupies the cells. `range` is x, y, z of the lowest corner, then
// of a voxel's size.
KERNEL mark_points(const float *points, const int *count, int features, const float *range, int X, int Y, int Z,
                   int *columns, int *bits, u64 *masks) {
    int p = THREAD;
    if (p >= *count) return;
    const float *point = points + (long long)p * features;
    float x = floorf((point[0] - range[0]) / range[3]);
    float y = floorf((point[1] - range[1]) / range[4]);
    float z = floorf((point[2] - range[2]) / range[5]);
    columns[p] = -1;
    if (!(x >= 0 && x < X && y >= 0 && y < Y && z >= 0 && z < Z)) return;
    columns[p] = ((int)x + 1) * (Y + 2) + (int)y + 1;
    bits[p] = (int)z + 1;
    atomicOr(masks + columns[p], 1ull << bits[p]);
}

// The row of each point's cell, over its bit; the first point of every row.
KERNEL find_rows(const int *count, const int *columns, const u64 *masks, const int *firsts, int *bits, int *first_points) {
    int p = THREAD;
    if (p >= *count || columns[p] < 0) return;
    int bit = bits[p];
    int row = firsts[columns[p]] + bits_below(masks[columns[p]], bit);
    atomicMin(first_points + row, p);
    // The bit is not needed any more but by free_cells, which reads it from here.
    bits[p] = row * 64 + bit;
}

// 1 for points that are the first of their cell; every entry up to `capacity` is written.
KERNEL flag_first(const int *count, int capacity, const int *columns, const int *bits, const int *first_points,
                  int *flags) {
    int p = THREAD;
    if (p > capacity) return;
    flags[p] = p < *count && columns[p] >= 0 && first_points[bits[p] / 64] == p;
}

// `order` is the prefix sum of those flags: cells are numbered as they are seen. Those behind `limit` are freed, the
// others flagged by row. `kept` is all zeros before.
KERNEL free_cells(const int *count, const int *columns, const int *bits, const int *first_points, const int *order,
                  int limit, u64 *masks, int *kept) {
    int p = THREAD;
    if (p >= *count || columns[p] < 0) return;
    int row = bits[p] / 64, bit = bits[p] % 64;
    if (first_points[row] != p) return;
    if (order[p] < limit) kept[row] = 1;
    else atomicAnd(masks + columns[p], ~(1ull << bit));
}

// `kept` is now the prefix sum of the flags: rows without the freed cells. Columns of no cell get any row.
KERNEL renumber_columns(const u64 *masks, int columns, const int *kept, int *firsts) {
    int column = THREAD;
    if (column < columns && masks[column]) firsts[column] = kept[firsts[column]];
}

// The first `most` points of each row in the cloud's order. Every slot keeps the smallest point that comes by and passes
// the other on: whatever the order in which threads run, slot i ends with the i-th smallest. Slots are large before.
KERNEL collect_points(const int *count, const int *columns, const int *bits, const u64 *masks, const int *kept, int most,
                      int *slots) {
    int p = THREAD;
    if (p >= *count || columns[p] < 0) return;
    int row = bits[p] / 64, bit = bits[p] % 64;
    if (!(masks[columns[p]] >> bit & 1ull)) return;
    int *slot = slots + (long long)kept[row] * most;
    int point = p;
    for (int i = 0; i < most; i++) {
        point = max(atomicMin(slot + i, point), point);
        if (point >= *count) return;
    }
}

// The mean point of each row, in the cloud's order.
KERNEL mean_points(const float *points, const int *count, int features, const int *rows, int most, const int *slots,
                   float *means) {
    int row = THREAD;
    if (row >= *rows) return;
    const int *slot = slots + (long long)row * most;
    int used = 0;
    while (used < most && slot[used] < *count) used++;
    for (int c = 0; c < features; c++) {
        float sum = 0.0f;
        for (int i = 0; i < used; i++) sum += points[(long long)slot[i] * features + c];
        means[(long long)row * features + c] = sum / (float)used;
    }
}
