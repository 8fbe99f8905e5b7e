// Native camera images to network images: resized as Pillow does (8 bits, weights of 22 bits, along rows and then along
// columns), cropped, normalised. The same as altermoma.ops.images.

#define PRECISION 22

static __device__ __forceinline__ u8 to_byte(int sum) { return (u8)min(max(sum >> PRECISION, 0), 255); }

// One output pixel along a row: `bounds` are the first input column and the number of columns, `weights` [width, taps].
// Rows from `top` on are read, as many as `rows`.
KERNEL resize_rows(const u8 *images, int views, int native_height, int native_width, int top, int rows, int width,
                   const int *bounds, const int *weights, int taps, u8 *resized) {
    int item = THREAD;
    if (item >= views * rows * width) return;
    int x = item % width, y = item / width % rows, view = item / width / rows;
    const u8 *row = images + (((long long)view * native_height + top + y) * native_width + bounds[2 * x]) * 3;
    const int *weight = weights + x * taps;
    int red = 1 << (PRECISION - 1), green = red, blue = red;
    for (int i = 0; i < bounds[2 * x + 1]; i++) {
        red += row[3 * i] * weight[i];
        green += row[3 * i + 1] * weight[i];
        blue += row[3 * i + 2] * weight[i];
    }
    u8 *out = resized + (long long)item * 3;
    out[0] = to_byte(red);
    out[1] = to_byte(green);
    out[2] = to_byte(blue);
}

// One output value along a column, then (value - mean) * scale; `colour` holds three means and three scales. `bounds`
// count rows of `resized`.
KERNEL resize_columns(const u8 *resized, int views, int rows, int width, int height, const int *bounds,
                      const int *weights, int taps, const float *colour, float *images) {
    int item = THREAD;
    if (item >= views * height * width) return;
    int x = item % width, y = item / width % height, view = item / width / height;
    const int *weight = weights + y * taps;
    for (int c = 0; c < 3; c++) {
        const u8 *column = resized + (((long long)view * rows + bounds[2 * y]) * width + x) * 3 + c;
        int sum = 1 << (PRECISION - 1);
        for (int i = 0; i < bounds[2 * y + 1]; i++) sum += column[(long long)i * width * 3] * weight[i];
        images[(((long long)view * 3 + c) * height + y) * width + x] = ((float)to_byte(sum) - colour[c]) * colour[3 + c];
    }
}
