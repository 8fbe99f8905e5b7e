// BEV pooling tables from rays: which lifted pixels form runs, and which runs reach each cell.
// The same as altermoma.ops.pooling_tables. A block is one image column of one view; its runs are numbered by depth bin,
// then by row.

// The cell x * Y + y of each lifted pixel (view, row, column, bin), or -1. `bounds` as point_kernels.place_lifted has it.
KERNEL place_lifted(const double *directions, const double *origins, const double *depths, const float *bounds, int views,
                    int pixels, int bins, int *cells) {
    int item = THREAD;
    if (item >= views * pixels * bins) return;
    int view = item / bins / pixels;
    double depth = depths[item % bins];
    const double *direction = directions + (long long)(item / bins) * 3, *origin = origins + view * 3;
    float x = (float)(direction[0] * depth + origin[0]), y = (float)(direction[1] * depth + origin[1]);
    float z = (float)(direction[2] * depth + origin[2]);
    x = (x - bounds[0]) / bounds[2];
    y = (y - bounds[1]) / bounds[2];
    bool inside = x > -1 && x < bounds[5] && y > -1 && y < bounds[6] && z >= bounds[3] && z < bounds[4];
    cells[item] = inside ? (int)x * (int)bounds[6] + (int)y : -1;
}

// Runs of each block and bin, and of each cell, which is zero before.
KERNEL count_runs(const int *cells, int views, int height, int width, int bins, int *runs, int *counts) {
    int item = THREAD;
    if (item > views * width * bins) return;
    runs[item] = 0;
    if (item == views * width * bins) return;
    int bin = item % bins, column = item / bins % width, view = item / bins / width, before = -1, found = 0;
    for (int row = 0; row < height; row++) {
        int cell = cells[((long long)(view * height + row) * width + column) * bins + bin];
        if (cell >= 0 && cell != before) {
            atomicAdd(counts + cell, 1);
            found++;
        }
        before = cell;
    }
    runs[item] = found;
}

// The most runs of a block, from the prefix sums of the runs; and the longest list of a cell. Both are zero before.
KERNEL find_most(const int *runs, int blocks, int bins, const int *counts, int cells, int *most) {
    int item = THREAD;
    if (item < blocks) atomicMax(most, runs[(item + 1) * bins] - runs[item * bins]);
    if (item < cells) atomicMax(most + 1, counts[item]);
}

// Lifted pixels into their runs, and each run's row into the list of its cell, in any order. `table` holds "none" and
// `cursors` the prefix sums of the counts before.
KERNEL fill_runs(const int *cells, const int *runs, int views, int height, int width, int bins, int room, int *table,
                 int *cursors, int *entries) {
    int item = THREAD;
    if (item >= views * width * bins) return;
    int bin = item % bins, block = item / bins, column = block % width, view = block / width, before = -1;
    int run = runs[item] - runs[block * bins] - 1;
    for (int row = 0; row < height; row++) {
        int pixel = ((view * height + row) * width + column) * bins + bin;
        int cell = cells[pixel];
        if (cell >= 0) {
            if (cell != before) entries[atomicAdd(cursors + cell, 1)] = block * room + ++run;
            table[((long long)block * room + run) * height + row] = pixel;
        }
        before = cell;
    }
}

// Every list in ascending order; `ends` is where each ends.
KERNEL sort_lists(const int *lengths, const int *ends, int cells, int *entries) {
    int cell = THREAD;
    if (cell >= cells) return;
    int *list = entries + ends[cell] - lengths[cell];
    for (int i = 1; i < lengths[cell]; i++) {
        int value = list[i], j = i;
        for (; j > 0 && list[j - 1] > value; j--) list[j] = list[j - 1];
        list[j] = value;
    }
}

// Pieces that lists longer than `last` are cut into, 0 for the others, and how long the lists are then; one more each.
KERNEL count_pieces(const int *lengths, int cells, int width, int last, int *pieces, int *shorter) {
    int cell = THREAD;
    if (cell > cells) return;
    int length = cell < cells ? lengths[cell] : 0;
    pieces[cell] = length > last ? (length + width - 1) / width : 0;
    shorter[cell] = length > last ? pieces[cell] : length;
}

// Long lists become rows of the table, from `first_row` on, the others are copied. `pieces` and `begins_out` are prefix
// sums; `table` holds "none" before.
KERNEL cut_lists(const int *entries, const int *lengths, const int *begins, int cells, int width, int last, int first_row,
                 const int *pieces, const int *begins_out, int *table, int *shortened) {
    int cell = THREAD;
    if (cell >= cells) return;
    const int *list = entries + begins[cell];
    int *out = shortened + begins_out[cell];
    if (lengths[cell] <= last) {
        for (int i = 0; i < lengths[cell]; i++) out[i] = list[i];
        return;
    }
    for (int i = 0; i < lengths[cell]; i++) table[(long long)pieces[cell] * width + i] = list[i];
    for (int i = 0; i < (lengths[cell] + width - 1) / width; i++) out[i] = first_row + pieces[cell] + i;
}

// Every list into its own row.
KERNEL fill_cells(const int *entries, const int *lengths, const int *begins, int cells, int width, int *table) {
    int cell = THREAD / width, i = THREAD % width;
    if (cell < cells && i < lengths[cell]) table[THREAD] = entries[begins[cell] + i];
}

KERNEL copy_integers(const int *from, int count, int *to) {
    if (THREAD < count) to[THREAD] = from[THREAD];
}
