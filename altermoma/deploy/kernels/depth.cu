// LiDAR points seen by each camera: the last point of the cloud wins a pixel. The same as altermoma.ops.depth_image.
// `projections` [views, 3, 4] to native pixels times metres; `warp` is scale, left, top of the network image.

static __device__ __forceinline__ float along(const float *m, const float *point) {
    return m[0] * point[0] + m[1] * point[1] + m[2] * point[2] + m[3];
}

// The last point on each pixel; `last` is -1 everywhere before.
KERNEL find_last(const float *points, const int *count, int features, const float *projections, const float *warp,
                 int views, int height, int width, int *last) {
    int p = THREAD / views, view = THREAD % views;
    if (p >= *count) return;
    const float *point = points + (long long)p * features, *m = projections + view * 12;
    float metres = along(m + 8, point);
    if (!(metres > 1e-3f)) return;
    float column = floorf(along(m, point) / metres * warp[0] - warp[1]);
    float row = floorf(along(m + 4, point) / metres * warp[0] - warp[2]);
    if (column >= 0 && column < width && row >= 0 && row < height)
        atomicMax(last + ((long long)view * height + (int)row) * width + (int)column, p);
}

// Metres along the optical axis, 0 where there is no point.
KERNEL write_depth(const float *points, int features, const float *projections, int views, int pixels, const int *last,
                   float *depth) {
    int item = THREAD;
    if (item >= views * pixels) return;
    int p = last[item];
    depth[item] = p < 0 ? 0.0f : along(projections + item / pixels * 12 + 8, points + (long long)p * features);
}
