/* A convolution by Winograd's way (winograd.py), in one pass: the sums before, the products and the sums after of a few
 * tiles stay in the cache of a core. onepass.py puts before this file vectors.c and what is known of the three axes X, Y,
 * Z (X is the slowest in memory; an image in 2-D has one voxel along it):
 *
 *     IN_X PLACES_X OUT_X STEP_X         voxels that a tile sees, its products and outputs; the next tile is STEP on
 *     spread_y fold_y spread_z fold_z    the rows of `Scheme.spread` and `Scheme.fold` as functions of vectors `gap` and
 *                                        `wide` apart
 *     SPREAD_X FOLD_X                    those of the slowest axis: ROW(place, sum of what X(voxel) is) each; an array
 *
 * All images are channels-last; x, add and out are of `value`.
 */

enum {
    ROWS = 6, COLUMNS = 2 * W,   /* of a product in registers */
    LINE = 16, UNIT = LINE / W,  /* floats and vectors of a line of the cache */
    CELLS = IN_X * IN_Y * IN_Z, PLANE = IN_Y * IN_Z, FLAT = OUT_Y * OUT_Z,
    MANY = PLACES_Y * PLACES_Z, MOST = (PLANE > MANY ? PLANE : MANY) * UNIT
};

typedef struct {
    int64_t batch, inputs, outputs, threads;
    int64_t size[3], begin[3], total[3], tiles[3]; /* of x, where tiles begin in it; of out; and how many tiles */
    int64_t together, block, scratch;              /* tiles and outputs of a task, floats that it needs */
} shape_of;

int omp_get_thread_num(void);

/* m [rows, COLUMNS] = v [rows, c] u [c, COLUMNS] */
static inline __attribute__((always_inline)) void product(
    const int rows, const float *v, int64_t gap, const float *u, int64_t c, float *m, int64_t wide, const float *next) {
    vec left[ROWS], right[ROWS];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) left[i] = right[i] = (vec){0};
    for (int64_t k = 0; k < c; k++, u += COLUMNS) {
        vec first = load(u), second = load(u + W);
        if (next)
            for (int n = 0; n < COLUMNS; n += LINE) __builtin_prefetch(next + k * COLUMNS + n, 0, 2);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            float one = v[i * gap + k];
            left[i] += one * first;
            right[i] += one * second;
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        store(m + i * wide, left[i]);
        store(m + i * wide + W, right[i]);
    }
}

/* the same of any number of rows; meanwhile what `next` points at, as much as u, is brought nearer */
static void products(int64_t rows, const float *v, int64_t gap, const float *u, int64_t c, float *m, int64_t wide,
                     const float *next) {
    for (; rows > ROWS; rows -= ROWS, v += ROWS * gap, m += ROWS * wide) product(ROWS, v, gap, u, c, m, wide, NULL);
    switch (rows) {
    case 6: product(6, v, gap, u, c, m, wide, next); break;
    case 5: product(5, v, gap, u, c, m, wide, next); break;
    case 4: product(4, v, gap, u, c, m, wide, next); break;
    case 3: product(3, v, gap, u, c, m, wide, next); break;
    case 2: product(2, v, gap, u, c, m, wide, next); break;
    case 1: product(1, v, gap, u, c, m, wide, next); break;
    }
}

/* a tile's number -> its sample's, and its place along every axis */
static int64_t place_of(int64_t tile, const shape_of *s, int64_t at[3]) {
    for (int axis = 2; axis >= 0; axis--) {
        at[axis] = tile % s->tiles[axis];
        tile /= s->tiles[axis];
    }
    return tile;
}

/* where the voxels that a tile sees lie in x; zeros outside */
static void find(const value *x, const value *zeros, const shape_of *s, int64_t tile, const value **at) {
    int64_t place[3], sample = place_of(tile, s, place);
    const int64_t from[3] = {
        s->begin[0] + place[0] * STEP_X - (IN_X - STEP_X) / 2, s->begin[1] + place[1] * STEP_Y - (IN_Y - STEP_Y) / 2,
        s->begin[2] + place[2] * STEP_Z - (IN_Z - STEP_Z) / 2};
    for (int64_t a = from[0]; a < from[0] + IN_X; a++)
        for (int64_t b = from[1]; b < from[1] + IN_Y; b++)
            for (int64_t c = from[2]; c < from[2] + IN_Z; c++) {
                int inside = a >= 0 && a < s->size[0] && b >= 0 && b < s->size[1] && c >= 0 && c < s->size[2];
                int64_t voxel = ((sample * s->size[0] + a) * s->size[1] + b) * s->size[2] + c;
                *at++ = inside ? x + voxel * s->inputs : zeros;
            }
}

/* v, rows `gap` apart: of what a tile sees `at`, all that shares the place `first` of the first axis */
static void spread(const value **at, int64_t channels, int first, float *v, int64_t gap) {
    vec one[MOST] __attribute__((aligned(64))), two[MOST] __attribute__((aligned(64)));
    for (int64_t n = 0; n < channels; n += LINE) {
#define X(voxel) get(at[(voxel) * PLANE + e] + n + f * W)
#define ROW(place, sum)                                     \
    case place:                                             \
        for (int e = 0; e < PLANE; e++)                     \
            for (int f = 0; f < UNIT; f++) one[e * UNIT + f] = sum; \
        break;
        switch (first) { SPREAD_X }
        for (int e = 0; e < IN_Z * UNIT; e++) spread_y((loose *)one + e, IN_Z * UNIT, (loose *)two + e, IN_Z * UNIT);
        for (int p = 0; p < PLACES_Y; p++)
            for (int f = 0; f < UNIT; f++)
                spread_z((loose *)two + p * IN_Z * UNIT + f, UNIT, (loose *)(v + p * PLACES_Z * gap + n) + f, gap / W);
    }
}

/* adds what the products m, rows `gap` apart, of these places say of a tile's outputs to sums [outputs, block] */
static void fold(const float *m, int64_t gap, int64_t block, int first, float *sums) {
    vec one[MOST] __attribute__((aligned(64))), two[MOST] __attribute__((aligned(64)));
    for (int64_t n = 0; n < block; n += LINE) {
        for (int p = 0; p < PLACES_Z; p++)
            for (int f = 0; f < UNIT; f++)
                fold_y((const loose *)(m + p * gap + n) + f, PLACES_Z * gap / W, (loose *)two + p * UNIT + f, PLACES_Z * UNIT);
        for (int e = 0; e < OUT_Y; e++)
            for (int f = 0; f < UNIT; f++)
                fold_z((loose *)two + e * PLACES_Z * UNIT + f, UNIT, (loose *)one + e * OUT_Z * UNIT + f, UNIT);
        for (int d = 0; d < OUT_X; d++) {
            const float factor = FOLD_X[d][first];
            if (first && !factor) continue;
            for (int e = 0; e < FLAT; e++)
                for (int f = 0; f < UNIT; f++) {
                    float *sum = sums + (d * FLAT + e) * block + n + f * W;
                    vec x = factor * one[e * UNIT + f];
                    store(sum, first ? load(sum) + x : x);
                }
        }
    }
}

/* sums [outputs, block] + bias + add -> the voxels of a tile that the image has, channels `from` and on */
static void finish(const float *sums, const shape_of *s, int64_t tile, int64_t from, const float *bias,
                   const value *add, value *out) {
    const int64_t many = s->outputs - from < s->block ? s->outputs - from : s->block;
    int64_t place[3], sample = place_of(tile, s, place);
    const int64_t x = place[0] * OUT_X, y = place[1] * OUT_Y, z = place[2] * OUT_Z;
    for (int d = 0; d < OUT_X && x + d < s->total[0]; d++)
        for (int e = 0; e < OUT_Y && y + e < s->total[1]; e++) {
            const float *sum = sums + (d * OUT_Y + e) * OUT_Z * s->block;
            int64_t row = ((sample * s->total[0] + x + d) * s->total[1] + y + e) * s->total[2];
            int64_t to = (row + z) * s->outputs + from;
            for (int f = 0; f < OUT_Z && z + f < s->total[2]; f++, to += s->outputs, sum += s->block)
                for (int64_t n = 0; n < many; n += W) {
                    vec v = load(sum + n);
                    if (bias) v += load(bias + from + n);
                    if (add) v += get(add + to + n);
                    put(out + to + n, v);
                }
        }
}

/* tiles begin .. begin + count - 1, outputs from .. from + block - 1 */
static void task(const value *x, value *out, const float *u, const float *bias, const value *add, const shape_of *s,
                 int64_t begin, int64_t count, int64_t from, float *scratch) {
    const int64_t inputs = s->inputs, block = s->block, panels = (s->outputs + COLUMNS - 1) / COLUMNS;
    const int64_t first = from / COLUMNS, some = first + block / COLUMNS, last = some < panels ? some : panels;
    const int64_t v_gap = s->together * inputs + LINE, m_gap = s->together * block + LINE; /* no power of two apart */
    const value **at = (const value **)scratch;
    float *zeros = scratch + (2 * s->together * CELLS + LINE - 1) / LINE * LINE; /* (a pointer is two floats, or one) */
    float *v = zeros + inputs, *m = v + MANY * v_gap;
    float *sums = m + MANY * m_gap;
    memset(zeros, 0, inputs * sizeof(float));
    for (int64_t t = 0; t < count; t++) find(x, (const value *)zeros, s, begin + t, at + t * CELLS);
    for (int place = 0; place < PLACES_X; place++) {
        for (int64_t t = 0; t < count; t++) spread(at + t * CELLS, inputs, place, v + t * inputs, v_gap);
        for (int64_t p = 0; p < MANY; p++)
            for (int64_t panel = first; panel < last; panel++) {
                const float *own = u + ((place * MANY + p) * panels + panel) * inputs * COLUMNS;
                int64_t on = panel + 1 < last ? 1 : panels - (last - first) + 1;
                products(count, v + p * v_gap, inputs, own, inputs, m + p * m_gap + (panel - first) * COLUMNS, block,
                         own + on * inputs * COLUMNS);
            }
        for (int64_t t = 0; t < count; t++)
            fold(m + t * block, m_gap, block, place, sums + t * OUT_X * FLAT * block);
    }
    for (int64_t t = 0; t < count; t++)
        finish(sums + t * OUT_X * FLAT * block, s, begin + t, from, bias, add, out);
}

/* outputs that a product makes at once: u is [places, outputs / columns, inputs, columns], padded with zeros */
int64_t columns(void) { return COLUMNS; }

/* x [batch, size, inputs] -> out [batch, total, outputs]; bias [outputs] and add, like out, may be NULL */
void convolve(const value *x, value *out, const float *u, const float *bias, const value *add, const shape_of *s,
              float *scratch) {
    const int64_t tiles = s->batch * s->tiles[0] * s->tiles[1] * s->tiles[2];
    const int64_t boxes = (tiles + s->together - 1) / s->together, blocks = (s->outputs + s->block - 1) / s->block;
#pragma omp parallel for schedule(dynamic, 1) num_threads((int)s->threads)
    for (int64_t n = 0; n < boxes * blocks; n++) {
        int64_t begin = n % boxes * s->together, left = tiles - begin;
        task(x, out, u, bias, add, s, begin, left < s->together ? left : s->together, n / boxes * s->block,
             scratch + omp_get_thread_num() * s->scratch);
    }
}
