/* SiLU of a group norm, in two passes: one for means and variances, one that writes. native.py puts HALF and
 * vectors.c before this file; x and out are [batch, voxels, channels], float or (HALF) bfloat16.
 */

enum { PIECE = 512 }; /* voxels summed at a time, in float; pieces are summed in double, in order */

typedef int32_t whole_vec __attribute__((vector_size(4 * W)));

/* e^x, to 2 units in the last place; x is kept where e^x is a number (Cephes' polynomial) */
static inline vec exponential(vec x) {
    const vec most = (vec){0} + 88.0f, least = (vec){0} - 87.0f;
    whole_vec high = x > most, low = x < least;
    x = (vec)(((whole_vec)most & high) | ((whole_vec)least & low) | ((whole_vec)x & ~(high | low)));
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number, in the lowest bits */
    vec t = x * 1.44269504088896341f + shift, n = t - shift;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f, r2 = r * r;
    vec p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r
             + 1.6666665459e-1f) * r + 5.0000001201e-1f;
    whole_vec power = ((whole_vec)t - (whole_vec)((vec){0} + shift) + 127) << 23;
    return (p * r2 + r + 1.0f) * (vec)power;
}

/* sums [2, channels] of x - first and of its square, of some voxels */
static void moments(const value *x, const value *first, int64_t voxels, int64_t channels, float *sums) {
    for (int64_t c = 0; c < channels; c += W) {
        vec total = {0}, square = {0}, middle = get(first + c);
        for (int64_t n = 0; n < voxels; n++) {
            vec v = get(x + n * channels + c) - middle;
            total += v;
            square += v * v;
        }
        store(sums + c, total);
        store(sums + channels + c, square);
    }
}

/* of a sample's pieces, in order: what x is multiplied by and what is added, scale [2, channels] */
static void settle(const value *first, const float *sums, int64_t pieces, int64_t voxels, int64_t channels,
                   int64_t groups, const float *weight, const float *bias, double eps, float *scale) {
    const int64_t width = channels / groups;
    for (int64_t g = 0; g < groups; g++) {
        double level[2] = {0, 0}; /* mean, and mean of the square, of deviations from the group's first channel's `first` */
        const double origin = one(first + g * width);
        for (int64_t c = g * width; c < (g + 1) * width; c++) {
            double total = 0, square = 0, away = one(first + c) - origin;
            for (int64_t p = 0; p < pieces; p++) {
                total += sums[p * 2 * channels + c];
                square += sums[p * 2 * channels + channels + c];
            }
            level[0] += total + voxels * away;
            level[1] += square + 2 * away * total + voxels * away * away;
        }
        const double count = (double)voxels * width, mean = level[0] / count, variance = level[1] / count - mean * mean;
        const double rate = 1 / sqrt((variance > 0 ? variance : 0) + eps);
        for (int64_t c = g * width; c < (g + 1) * width; c++) {
            scale[c] = (float)(weight[c] * rate);
            scale[channels + c] = (float)(bias[c] - (mean + origin) * weight[c] * rate);
        }
    }
}

static void write(const value *x, value *out, const float *scale, int64_t voxels, int64_t channels) {
    for (int64_t n = 0; n < voxels * channels; n += channels)
        for (int64_t c = 0; c < channels; c += W) {
            vec v = get(x + n + c) * load(scale + c) + load(scale + channels + c);
            put(out + n + c, v / (1.0f + exponential(-v)));
        }
}

/* weight and bias [channels], `apart` channels on for the next sample; scratch: 2 channels for every piece and one */
void activate(const value *x, value *out, const float *weight, const float *bias, int64_t apart, int64_t batch,
              int64_t voxels, int64_t channels, int64_t groups, double eps, int64_t threads, float *scratch) {
    const int64_t pieces = (voxels + PIECE - 1) / PIECE;
    float *sums = scratch + 2 * channels;
    for (int64_t b = 0; b < batch; b++, x += voxels * channels, out += voxels * channels) {
#pragma omp parallel for num_threads((int)threads)
        for (int64_t p = 0; p < pieces; p++) {
            int64_t left = voxels - p * PIECE;
            moments(x + p * PIECE * channels, x, left < PIECE ? left : PIECE, channels, sums + p * 2 * channels);
        }
        settle(x, sums, pieces, voxels, channels, groups, weight + b * apart, bias + b * apart, eps, scratch);
#pragma omp parallel for num_threads((int)threads)
        for (int64_t p = 0; p < pieces; p++) {
            int64_t left = voxels - p * PIECE;
            write(x + p * PIECE * channels, out + p * PIECE * channels, scratch, left < PIECE ? left : PIECE, channels);
        }
    }
}
