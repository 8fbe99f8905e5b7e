// Exclusive prefix sums, in chunks of CHUNK: sums of the chunks, their prefix sums (by the same kernels, again and again
// until one chunk is left), then the sums inside of every chunk. Serial inside of a chunk, so that nothing is shared.

#define CHUNK 64

KERNEL sum_chunks(const int *values, int count, int *sums) {
    int begin = THREAD * CHUNK;
    if (begin >= count) return;
    int end = min(begin + CHUNK, count), total = 0;
    for (int i = begin; i < end; i++) total += values[i];
    sums[THREAD] = total;
}

// values become their exclusive prefix sums; `offsets` are those of the chunks, or null for a single chunk.
KERNEL scan_chunks(int *values, int count, const int *offsets) {
    int begin = THREAD * CHUNK;
    if (begin >= count) return;
    int end = min(begin + CHUNK, count), total = offsets ? offsets[THREAD] : 0;
    for (int i = begin; i < end; i++) {
        int value = values[i];
        values[i] = total;
        total += value;
    }
}
