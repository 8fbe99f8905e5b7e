// The graph inputs of the sparse encoder, from cells and kinds. The same as altermoma.ops.sparse_tables.
// `r*` are the rows where the four segments of a level begin.

// Every entry; tables are filled with "none", then rows of cells are written over.
KERNEL fill_entries(int *table, int count, int value) {
    if (THREAD < count) table[THREAD] = value;
}

// The place of each row among the segments.
KERNEL place_rows(const int *kinds, const int *places, const int *rows, int capacity, int r0, int r1, int r2, int r3,
                  int *ranks) {
    int row = THREAD;
    if (row >= *rows || row >= capacity) return;
    int kind = kinds[row], begins[4] = {r0, r1, r2, r3};
    ranks[row] = begins[kind] + places[kind * capacity + row] - places[kind * capacity];
}

// Voxel features in the order of the rows; `voxels` is all zeros before.
KERNEL place_features(const float *means, const int *ranks, const int *rows, int features, float *voxels) {
    int row = THREAD / features, c = THREAD % features;
    if (row < *rows) voxels[(long long)ranks[row] * features + c] = means[(long long)row * features + c];
}

// For each output cell and window column the places of the three cells above each other, or `none`: one thread each.
// Output rows lie in the tables t0 to t3 of their kinds; with `near` those hold only the heights that the segment
// needs. Without kinds (null) all rows lie in t0 in ascending order.
KERNEL fill_tables(const u64 *masks, const int *firsts, const int *ranks, int Y, int none, const int *cells,
                   const int *rows, int capacity, const int *kinds, const int *places, int near, int kx, int ky, int kz,
                   int sx, int sy, int sz, int px, int py, int pz, int *t0, int *t1, int *t2, int *t3) {
    int row = THREAD / (kx * ky), column = THREAD % (kx * ky);
    if (row >= *rows || row >= capacity) return;
    int kind = kinds ? kinds[row] : 0;
    int place = kinds ? places[kind * capacity + row] - places[kind * capacity] : row;
    if (near) {
        int first = kind == 0 || kind == 2, end = kind >= 2 ? 3 : 2;
        kz = end - first;
        pz = 1 - first;
    }
    int *tables[4] = {t0, t1, t2, t3};
    int *entry = tables[kind] + ((long long)place * kx * ky + column) * kz;
    int x = (cells[row] >> 17) * sx - px + 1 + column / ky;
    int y = (cells[row] >> 6 & 2047) * sy - py + 1 + column % ky;
    int bit = (cells[row] & 63) * sz - pz + 1;
    u64 mask = masks[x * (Y + 2) + y];
    int source = firsts[x * (Y + 2) + y] + bits_below(mask, bit);
    for (int k = 0; k < kz; k++) {
        int there = (int)(mask >> (bit + k) & 1ull);
        entry[k] = there ? ranks[source] : none;
        source += there;
    }
}

// The row in each cell of the bird's-eye view; filled with "none" before.
KERNEL fill_bev(const int *cells, const int *rows, int Y, int Z, int *table) {
    int row = THREAD;
    if (row >= *rows) return;
    int x = cells[row] >> 17, y = cells[row] >> 6 & 2047, z = cells[row] & 63;
    table[(x * Y + y) * Z + z] = row;
}
