// The occupied cells of every level of the sparse encoder, and the segment of each, from bit masks per column.
// The same as altermoma.ops.column_kernels. A cell is packed as x << 17 | y << 6 | z.

KERNEL count_columns(const u64 *masks, int columns, int *counts) {
    int column = THREAD;
    if (column > columns) return;
    counts[column] = column < columns ? __popcll(masks[column]) : 0;
}

// Occupied cells in ascending order; `firsts` are the prefix sums of the counts.
KERNEL list_cells(const u64 *masks, const int *firsts, int X, int Y, int capacity, int *cells) {
    int column = THREAD;
    if (column >= X * Y) return;
    int x = column / Y, y = column % Y, place = (x + 1) * (Y + 2) + y + 1;
    u64 mask = masks[place] >> 1;
    int row = firsts[place];
    for (int z = 0; mask && row < capacity; z++, mask >>= 1)
        if (mask & 1ull) cells[row++] = x << 17 | y << 6 | z;
}

// Where the 3 x 3 x 3 neighbourhood of each row is occupied: 1 below, 2 above, 3 both, 0 neither. Flags [4, capacity]
// and one more are all zeros before; their prefix sums number the rows of each kind.
KERNEL find_kinds(const int *cells, const int *rows, const u64 *masks, int Y, int capacity, int *kinds, int *flags) {
    int row = THREAD;
    if (row >= *rows || row >= capacity) return;
    int x = cells[row] >> 17, y = cells[row] >> 6 & 2047, z = cells[row] & 63;
    u64 seen = 0;
    for (int i = x; i < x + 3; i++)
        for (int j = y; j < y + 3; j++) seen |= masks[i * (Y + 2) + j] >> z;
    int kind = (int)(seen & 1ull) + 2 * (int)(seen >> 2 & 1ull);
    kinds[row] = kind;
    flags[kind * capacity + row] = 1;
}

// Rows of each kind, and of all, from the prefix sums of the flags and of the columns.
KERNEL count_kinds(const int *places, const int *rows, int capacity, int *counts) {
    int kind = THREAD;
    if (kind < 4) counts[kind] = places[(kind + 1) * capacity] - places[kind * capacity];
    if (kind == 4) counts[kind] = *rows;
}

KERNEL copy_count(const int *from, int *to) {
    if (THREAD == 0) *to = *from;
}

// The cells of the next level whose window covers an occupied cell: every column of the output looks at its window.
KERNEL reach_cells(const u64 *masks, int X, int Y, int kx, int ky, int kz, int sx, int sy, int sz, int px, int py, int pz,
                   int X_out, int Y_out, int Z_out, u64 *reached) {
    int column = THREAD;
    if (column >= X_out * Y_out) return;
    int x_out = column / Y_out, y_out = column % Y_out;
    u64 seen = 0;
    for (int i = x_out * sx - px; i < x_out * sx - px + kx; i++)
        for (int j = y_out * sy - py; j < y_out * sy - py + ky; j++)
            if (i >= 0 && i < X && j >= 0 && j < Y) seen |= masks[(i + 1) * (Y + 2) + j + 1];
    u64 covered = 0, along_z = (1ull << kz) - 1ull;
    for (int z = 0; z < Z_out; z++)
        if (seen >> (z * sz - pz + 1) & along_z) covered |= 1ull << (z + 1);
    reached[(x_out + 1) * (Y_out + 2) + y_out + 1] = covered;
}
