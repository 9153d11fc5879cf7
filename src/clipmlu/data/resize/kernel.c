/* Pillow's resize of 8-bit RGB images, bit for bit, of the part that a crop keeps, with normalisation.
 *
 * The arithmetic is that of Pillow's src/libImaging/Resample.c: weights in double precision, rounded to integers of 22
 * fractional bits, and two passes with 8 bits between them. The sums are integer sums, so that their order does not
 * matter and vector instructions give equal results.
 *
 * Both passes are one operation, `combine`, on groups of four source values ("quads"): the value of four neighbouring
 * columns (horizontal pass) or rows (vertical pass) of one pixel and channel lie side by side, and the lanes of a group
 * are the pixels and channels that share weights. Weights are padded with zeros to whole groups.
 *
 * Compile with -ffp-contract=off: a fused multiply-add would round weights differently from Pillow on x86-64.
 */

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAVE_X86 1
#endif

#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0
#error "double arithmetic is not rounded to double: weights would differ from Pillow's"
#endif

#ifndef CLIPMLU_SOURCE_DIGEST
#define CLIPMLU_SOURCE_DIGEST ""
#endif

#ifdef _WIN32
#define API __declspec(dllexport)
#else
#define API __attribute__((visibility("default")))
#endif

#define FRACTION_BITS 22
#define HALF (1 << (FRACTION_BITS - 1))
#define MAX_WEIGHT ((1 << 23) - (1 << 16)) /* larger ones do not fit into three signed bytes */
#define MAX_SIDE (1 << 24)                 /* Pillow holds sides as float: integers above are not exact */
#define MAX_SCRATCH ((size_t)256 << 20)
#define QUAD 4
#define CHANNELS 3
#define LANES 16          /* lanes come in multiples of this */
#define BLOCK_ROWS LANES  /* rows of one horizontal pass */
#define BLOCK_LANES (CHANNELS * BLOCK_ROWS)
#define COLUMN_BYTES 240  /* bytes of a row in one vertical pass before the horizontal one; a multiple of LANES */

enum { DONE = 0, OUT_OF_MEMORY = 1, UNSUPPORTED = 2 };

/* Four weights, as the variant's `combine` reads them. */
typedef union {
    int32_t whole[QUAD];
    int16_t halves[2][QUAD];  /* weight >> 11 and the lower 11 bits */
    int8_t bytes[4][QUAD];    /* signed digits of base 256, the lowest first; the last is unused */
} Weights;

typedef struct {
    const char *name;
    void (*pack)(Weights *weights, size_t count);
    /* out[i] = clipped, rounded sum over groups and j of quads[group * group_bytes + 4 * i + j] * weight j of the group */
    void (*combine)(uint8_t *out, const uint8_t *quads, size_t group_bytes, const Weights *weights, int groups, size_t lanes);
    /* quads[group][channel][row][j] = channel of pixel 4 * group + j of a row; zero beyond `columns` */
    void (*gather)(uint8_t *quads, const uint8_t *const *rows, int pixel_bytes, int groups, int columns);
} Variant;

/* One direction of the resize: the weights of the kept outputs, and the source values that they need. */
typedef struct {
    int size;          /* source size */
    int resized;       /* full resized size */
    int first, count;  /* kept outputs */
    int start, stop;   /* needed source values; start is a multiple of 4 */
    int needed;        /* whether the size changes */
    int width;         /* groups reserved for an output */
    int *group;        /* first group of each output, counted from start */
    int *groups;       /* number of groups of each output */
    Weights *weights;
} Axis;

/* Pixels with strides in bytes. */
typedef struct {
    const uint8_t *base;
    ptrdiff_t row, pixel, channel;
} View;

/* Where results go; strides in elements. `table` maps channel and value to float32; without it results are uint8. */
typedef struct {
    void *out;
    const float *table;
    ptrdiff_t channel, row, column;
} Sink;

/* ---- weights: the operations and their order are Pillow's (precompute_coeffs, normalize_coeffs_8bpc) ---- */

static double bilinear(double x) {
    x = x < 0.0 ? -x : x;
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double bicubic(double x) {
    const double a = -0.5;
    x = x < 0.0 ? -x : x;
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static int round_weight(double weight) {
    return (int)((weight < 0 ? -0.5 : 0.5) + weight * (1 << FRACTION_BITS));
}

static void free_axis(Axis *axis) {
    free(axis->group);
    free(axis->groups);
    free(axis->weights);
}

static int compute_weights(Axis *axis, int cubic) {
    double scale = (double)(float)axis->size / axis->resized;
    double filter_scale = scale < 1.0 ? 1.0 : scale;
    double support = (cubic ? 2.0 : 1.0) * filter_scale;
    double inverse = 1.0 / filter_scale;
    size_t taps = (size_t)ceil(support) * 2 + 1;
    axis->width = (int)((taps + 2 * QUAD - 2) / QUAD);
    if ((size_t)axis->count * axis->width * sizeof(Weights) > MAX_SCRATCH) return UNSUPPORTED;
    double *row = malloc(taps * sizeof(double));
    axis->group = malloc(axis->count * sizeof(int));
    axis->groups = malloc(axis->count * sizeof(int));
    axis->weights = calloc((size_t)axis->count * axis->width, sizeof(Weights));
    int status = row && axis->group && axis->groups && axis->weights ? DONE : OUT_OF_MEMORY;
    axis->start = axis->size;
    axis->stop = 0;
    for (int i = 0; i < axis->count && status == DONE; i++) {
        double centre = (axis->first + i + 0.5) * scale;
        int low = (int)(centre - support + 0.5);
        int high = (int)(centre + support + 0.5);
        low = low < 0 ? 0 : low;
        high = high > axis->size ? axis->size : high;
        double sum = 0.0;
        for (int x = low; x < high; x++) {
            double place = (x - centre + 0.5) * inverse;
            row[x - low] = cubic ? bicubic(place) : bilinear(place);
            sum += row[x - low];
        }
        Weights *weights = axis->weights + (size_t)i * axis->width;
        for (int x = low; x < high; x++) {
            int weight = round_weight(sum != 0.0 ? row[x - low] / sum : row[x - low]);
            if (weight > MAX_WEIGHT || weight < -MAX_WEIGHT) status = UNSUPPORTED;
            int place = x - low / QUAD * QUAD;
            weights[place / QUAD].whole[place % QUAD] = weight;
        }
        axis->group[i] = low / QUAD;
        axis->groups[i] = (high + QUAD - 1) / QUAD - low / QUAD;
        axis->start = low < axis->start ? low : axis->start;
        axis->stop = high > axis->stop ? high : axis->stop;
    }
    free(row);
    if (status != DONE) return status;
    axis->start = axis->start / QUAD * QUAD;
    for (int i = 0; i < axis->count; i++) axis->group[i] -= axis->start / QUAD;
    return DONE;
}

static int prepare_axis(Axis *axis, int cubic, const Variant *variant) {
    if (!axis->needed) {
        axis->start = axis->first;
        axis->stop = axis->first + axis->count;
        return DONE;
    }
    int status = compute_weights(axis, cubic);
    if (status == DONE) variant->pack(axis->weights, (size_t)axis->count * axis->width);
    return status;
}

static int groups_of(const Axis *axis) { return (axis->stop - axis->start + QUAD - 1) / QUAD; }

/* ---- plain C ---- */

static void pack_plain(Weights *weights, size_t count) {
    (void)weights;
    (void)count;
}

static inline uint8_t clip8(int32_t sum) {
    sum >>= FRACTION_BITS;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

static void combine_plain(uint8_t *restrict out, const uint8_t *restrict quads, size_t group_bytes,
                          const Weights *restrict weights, int groups, size_t lanes) {
    for (size_t lane = 0; lane < lanes; lane += LANES) {
        int32_t sums[LANES];
        for (int i = 0; i < LANES; i++) sums[i] = HALF;
        const uint8_t *place = quads + QUAD * lane;
        for (int group = 0; group < groups; group++, place += group_bytes) {
            const int32_t *w = weights[group].whole;
            for (int i = 0; i < LANES; i++)
                sums[i] += place[4 * i] * w[0] + place[4 * i + 1] * w[1] + place[4 * i + 2] * w[2] + place[4 * i + 3] * w[3];
        }
        for (int i = 0; i < LANES; i++) out[lane + i] = clip8(sums[i]);
    }
}

static void gather_columns(uint8_t *quads, const uint8_t *const *rows, int pixel_bytes, int first, int groups, int columns) {
    for (int group = first; group < groups; group++)
        for (int row = 0; row < BLOCK_ROWS; row++)
            for (int j = 0; j < QUAD; j++) {
                int column = QUAD * group + j;
                const uint8_t *pixel = rows[row] + (size_t)column * pixel_bytes;
                uint8_t *place = quads + ((size_t)group * BLOCK_LANES + row) * QUAD + j;
                for (int c = 0; c < CHANNELS; c++) place[c * BLOCK_ROWS * QUAD] = column < columns ? pixel[c] : 0;
            }
}

static void gather_plain(uint8_t *quads, const uint8_t *const *rows, int pixel_bytes, int groups, int columns) {
    gather_columns(quads, rows, pixel_bytes, 0, groups, columns);
}

/* ---- x86-64: AVX2, and AVX-512 with VNNI ---- */

#ifdef HAVE_X86
static void pack_halves(Weights *weights, size_t count) {
    for (size_t i = 0; i < count; i++) {
        Weights packed;
        for (int j = 0; j < QUAD; j++) {
            packed.halves[0][j] = (int16_t)(weights[i].whole[j] >> 11);
            packed.halves[1][j] = (int16_t)(weights[i].whole[j] & 2047);
        }
        weights[i] = packed;
    }
}

static void pack_bytes(Weights *weights, size_t count) {
    for (size_t i = 0; i < count; i++) {
        Weights packed = {{0}};
        for (int j = 0; j < QUAD; j++) {
            int32_t rest = weights[i].whole[j];
            for (int digit = 0; digit < 3; digit++) {
                packed.bytes[digit][j] = (int8_t)(((rest & 255) ^ 128) - 128);
                rest = (rest - packed.bytes[digit][j]) >> 8;
            }
        }
        weights[i] = packed;
    }
}

__attribute__((target("avx2"))) static void combine_avx2(uint8_t *out, const uint8_t *quads, size_t group_bytes,
                                                         const Weights *weights, int groups, size_t lanes) {
    for (size_t lane = 0; lane < lanes; lane += LANES) {
        __m256i high[4], low[4];
        for (int i = 0; i < 4; i++) high[i] = low[i] = _mm256_setzero_si256();
        const uint8_t *place = quads + QUAD * lane;
        for (int group = 0; group < groups; group++, place += group_bytes) {
            int64_t bits[2];
            memcpy(bits, &weights[group], sizeof bits);
            __m256i upper = _mm256_set1_epi64x(bits[0]), lower = _mm256_set1_epi64x(bits[1]);
            for (int i = 0; i < 4; i++) {
                __m256i values = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(place + 16 * i)));
                high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(values, upper));
                low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(values, lower));
            }
        }
        for (int i = 0; i < 4; i++) low[i] = _mm256_add_epi32(low[i], _mm256_slli_epi32(high[i], 11));
        __m256i half = _mm256_set1_epi32(HALF);
        __m256i first = _mm256_add_epi32(_mm256_hadd_epi32(low[0], low[1]), half);
        __m256i second = _mm256_add_epi32(_mm256_hadd_epi32(low[2], low[3]), half);
        __m256i words = _mm256_packs_epi32(_mm256_srai_epi32(first, FRACTION_BITS), _mm256_srai_epi32(second, FRACTION_BITS));
        __m256i bytes = _mm256_packus_epi16(words, words); /* of each four lanes, the first two stand in the lower half */
        __m128i ordered = _mm_unpacklo_epi16(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
        _mm_storeu_si128((__m128i *)(out + lane), ordered);
    }
}

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))

VNNI static inline void store_sums(uint8_t *out, __m512i lowest, __m512i middle, __m512i highest) {
    __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(highest, 16), _mm512_slli_epi32(middle, 8));
    sum = _mm512_srai_epi32(_mm512_add_epi32(sum, lowest), FRACTION_BITS);
    _mm_storeu_si128((__m128i *)out, _mm512_cvtusepi32_epi8(_mm512_max_epi32(sum, _mm512_setzero_si512())));
}

/* Weight digits of one group, one digit in all lanes. */
VNNI static inline __m512i spread(const Weights *weights, int digit) {
    int32_t bits;
    memcpy(&bits, weights->bytes[digit], sizeof bits);
    return _mm512_set1_epi32(bits);
}

/* Three vectors at a time, with sums in names of their own: compilers copy arrays of vectors back and forth. */
VNNI static void combine_vnni(uint8_t *out, const uint8_t *quads, size_t group_bytes, const Weights *weights, int groups,
                              size_t lanes) {
    const __m512i half = _mm512_set1_epi32(HALF), zero = _mm512_setzero_si512();
    size_t lane = 0;
    for (; lane + 3 * LANES <= lanes; lane += 3 * LANES) {
        const uint8_t *place = quads + QUAD * lane;
        __m512i a0 = half, a1 = zero, a2 = zero, b0 = half, b1 = zero, b2 = zero, c0 = half, c1 = zero, c2 = zero;
        for (int group = 0; group < groups; group++, place += group_bytes) {
            const __m512i a = _mm512_loadu_si512(place), b = _mm512_loadu_si512(place + 64), c = _mm512_loadu_si512(place + 128);
            const __m512i w0 = spread(weights + group, 0), w1 = spread(weights + group, 1), w2 = spread(weights + group, 2);
            a0 = _mm512_dpbusd_epi32(a0, a, w0);
            b0 = _mm512_dpbusd_epi32(b0, b, w0);
            c0 = _mm512_dpbusd_epi32(c0, c, w0);
            a1 = _mm512_dpbusd_epi32(a1, a, w1);
            b1 = _mm512_dpbusd_epi32(b1, b, w1);
            c1 = _mm512_dpbusd_epi32(c1, c, w1);
            a2 = _mm512_dpbusd_epi32(a2, a, w2);
            b2 = _mm512_dpbusd_epi32(b2, b, w2);
            c2 = _mm512_dpbusd_epi32(c2, c, w2);
        }
        store_sums(out + lane, a0, a1, a2);
        store_sums(out + lane + LANES, b0, b1, b2);
        store_sums(out + lane + 2 * LANES, c0, c1, c2);
    }
    for (; lane < lanes; lane += LANES) {
        const uint8_t *place = quads + QUAD * lane;
        __m512i a0 = half, a1 = zero, a2 = zero;
        for (int group = 0; group < groups; group++, place += group_bytes) {
            const __m512i a = _mm512_loadu_si512(place);
            a0 = _mm512_dpbusd_epi32(a0, a, spread(weights + group, 0));
            a1 = _mm512_dpbusd_epi32(a1, a, spread(weights + group, 1));
            a2 = _mm512_dpbusd_epi32(a2, a, spread(weights + group, 2));
        }
        store_sums(out + lane, a0, a1, a2);
    }
}

__attribute__((target("ssse3"))) static void gather_ssse3(uint8_t *quads, const uint8_t *const *rows, int pixel_bytes,
                                                          int groups, int columns) {
    const int p = pixel_bytes;
    const __m128i order = _mm_setr_epi8(0, (char)p, (char)(2 * p), (char)(3 * p), 1, (char)(p + 1), (char)(2 * p + 1),
                                        (char)(3 * p + 1), 2, (char)(p + 2), (char)(2 * p + 2), (char)(3 * p + 2), -1, -1, -1, -1);
    /* whole 16 bytes are read: they must lie within the row */
    size_t bytes = (size_t)columns * p;
    int whole = bytes < 16 ? 0 : (int)((bytes - 16) / (QUAD * p)) + 1;
    whole = whole > groups ? groups : whole;
    for (int row = 0; row < BLOCK_ROWS; row += 4) {
        const uint8_t *r0 = rows[row], *r1 = rows[row + 1], *r2 = rows[row + 2], *r3 = rows[row + 3];
        uint8_t *place = quads + row * QUAD;
        for (int group = 0; group < whole; group++, place += BLOCK_LANES * QUAD) {
            size_t at = (size_t)group * QUAD * p;
            __m128i v0 = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(r0 + at)), order);
            __m128i v1 = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(r1 + at)), order);
            __m128i v2 = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(r2 + at)), order);
            __m128i v3 = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(r3 + at)), order);
            __m128i upper = _mm_unpacklo_epi32(v0, v1), lower = _mm_unpacklo_epi32(v2, v3);
            __m128i blue = _mm_unpacklo_epi64(_mm_unpackhi_epi32(v0, v1), _mm_unpackhi_epi32(v2, v3));
            _mm_storeu_si128((__m128i *)place, _mm_unpacklo_epi64(upper, lower));
            _mm_storeu_si128((__m128i *)(place + BLOCK_ROWS * QUAD), _mm_unpackhi_epi64(upper, lower));
            _mm_storeu_si128((__m128i *)(place + 2 * BLOCK_ROWS * QUAD), blue);
        }
    }
    gather_columns(quads, rows, pixel_bytes, whole, groups, columns);
}
#endif

static const Variant variants[] = {
    {"plain C", pack_plain, combine_plain, gather_plain},
#ifdef HAVE_X86
    {"AVX2", pack_halves, combine_avx2, gather_ssse3},
    {"AVX-512 VNNI", pack_bytes, combine_vnni, gather_ssse3},
#endif
};

static int variant_count(void) {
#ifdef HAVE_X86
    if (!__builtin_cpu_supports("avx2")) return 1;
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return 3;
    return 2;
#else
    return 1;
#endif
}

/* ---- passes ---- */

static void write_channel(const Sink *sink, int c, ptrdiff_t offset, const uint8_t *from, ptrdiff_t step, int count) {
    if (sink->table) {
        const float *table = sink->table + 256 * c;
        float *to = (float *)sink->out + offset;
        for (int x = 0; x < count; x++) to[x * sink->column] = table[from[x * step]];
    } else if (step == 1 && sink->column == 1) {
        memcpy((uint8_t *)sink->out + offset, from, count);
    } else {
        uint8_t *to = (uint8_t *)sink->out + offset;
        for (int x = 0; x < count; x++) to[x * sink->column] = from[x * step];
    }
}

static void write_row(const Sink *sink, const View *view, int y, int row, int count) {
    for (int c = 0; c < CHANNELS; c++)
        write_channel(sink, c, c * sink->channel + y * sink->row, view->base + row * view->row + c * view->channel, view->pixel, count);
}

/* Fill the quads of up to 16 rows from `row` on. Rows after the last one repeat it; their results are not used. */
static void gather_rows(uint8_t *quads, const View *view, int row, int rows, const Axis *x, const Variant *variant) {
    const uint8_t *places[BLOCK_ROWS];
    for (int i = 0; i < BLOCK_ROWS; i++) {
        int each = row + i < rows ? row + i : rows - 1;
        places[i] = view->base + each * view->row + x->start * view->pixel;
    }
    variant->gather(quads, places, (int)view->pixel, groups_of(x), x->size - x->start);
}

static size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }

/* Horizontal pass only, over the `count` rows from `first` on: results go to the sink. */
static int resize_columns(const View *view, int first, int count, const Axis *x, const Sink *sink, const Variant *variant) {
    uint8_t *quads = malloc((size_t)groups_of(x) * BLOCK_LANES * QUAD);
    uint8_t *block = malloc((size_t)x->count * BLOCK_LANES);
    int status = quads && block ? DONE : OUT_OF_MEMORY;
    View results = {block, 1, BLOCK_LANES, BLOCK_ROWS};
    for (int row = 0; row < count && status == DONE; row += BLOCK_ROWS) {
        gather_rows(quads, view, first + row, first + count, x, variant);
        for (int i = 0; i < x->count; i++)
            variant->combine(block + (size_t)i * BLOCK_LANES, quads + (size_t)x->group[i] * BLOCK_LANES * QUAD,
                             BLOCK_LANES * QUAD, x->weights + (size_t)i * x->width, x->groups[i], BLOCK_LANES);
        for (int i = 0; i < BLOCK_ROWS && row + i < count; i++) write_row(sink, &results, row + i, i, x->count);
    }
    free(quads);
    free(block);
    return status;
}

/* Both passes, the horizontal one first. Its results become the vertical pass's quads: [row / 4][channel][column][4]. */
static int resize_columns_then_rows(const View *view, const Axis *x, const Axis *y, const Sink *sink, const Variant *variant) {
    size_t lanes = round_up((size_t)CHANNELS * x->count, LANES), group_bytes = lanes * QUAD;
    size_t groups = round_up(y->stop - y->start, BLOCK_ROWS) / QUAD;
    if (groups * group_bytes > MAX_SCRATCH) return UNSUPPORTED;
    uint8_t *quads = malloc((size_t)groups_of(x) * BLOCK_LANES * QUAD);
    uint8_t *between = malloc(groups * group_bytes);
    uint8_t *row = malloc(lanes);
    int status = quads && between && row ? DONE : OUT_OF_MEMORY;
    for (int start = y->start; start < y->stop && status == DONE; start += BLOCK_ROWS) {
        gather_rows(quads, view, start, y->stop, x, variant);
        uint8_t *place = between + (size_t)(start - y->start) / QUAD * group_bytes;
        for (int i = 0; i < x->count; i++) {
            uint8_t block[BLOCK_LANES];
            variant->combine(block, quads + (size_t)x->group[i] * BLOCK_LANES * QUAD, BLOCK_LANES * QUAD,
                             x->weights + (size_t)i * x->width, x->groups[i], BLOCK_LANES);
            for (int quad = 0; quad < BLOCK_ROWS / QUAD; quad++)
                for (int c = 0; c < CHANNELS; c++)
                    memcpy(place + quad * group_bytes + ((size_t)c * x->count + i) * QUAD, block + c * BLOCK_ROWS + quad * QUAD, QUAD);
        }
    }
    View results = {row, 0, 1, x->count};
    for (int i = 0; i < y->count && status == DONE; i++) {
        variant->combine(row, between + y->group[i] * group_bytes, group_bytes, y->weights + (size_t)i * y->width, y->groups[i], lanes);
        write_row(sink, &results, i, 0, x->count);
    }
    free(quads);
    free(between);
    free(row);
    return status;
}

/* quads[i][j] = byte i of row j; rows after the last one are zero. */
static void interleave_rows(uint8_t *restrict quads, const uint8_t *rows, ptrdiff_t stride, int count, int bytes) {
    if (count >= QUAD) {
        const uint8_t *a = rows, *b = rows + stride, *c = rows + 2 * stride, *d = rows + 3 * stride;
        for (int i = 0; i < bytes; i++) {
            quads[4 * i] = a[i];
            quads[4 * i + 1] = b[i];
            quads[4 * i + 2] = c[i];
            quads[4 * i + 3] = d[i];
        }
        return;
    }
    for (int i = 0; i < bytes; i++)
        for (int j = 0; j < QUAD; j++) quads[QUAD * i + j] = j < count ? rows[j * stride + i] : 0;
}

/* Vertical pass over whole pixels, in pieces of COLUMN_BYTES: `out` gets y->count rows of `row_bytes`. */
static int resize_rows(uint8_t *out, size_t row_bytes, const View *view, const Axis *x, const Axis *y, const Variant *variant) {
    int groups = groups_of(y);
    if ((size_t)groups * COLUMN_BYTES * QUAD > MAX_SCRATCH) return UNSUPPORTED;
    uint8_t *quads = malloc((size_t)groups * COLUMN_BYTES * QUAD);
    if (!quads) return OUT_OF_MEMORY;
    size_t bytes = (size_t)(x->stop - x->start) * view->pixel;
    for (size_t start = 0; start < bytes; start += COLUMN_BYTES) {
        int width = (int)(bytes - start < COLUMN_BYTES ? bytes - start : COLUMN_BYTES);
        const uint8_t *from = view->base + x->start * view->pixel + start;
        for (int group = 0; group < groups; group++) {
            int row = y->start + group * QUAD;
            interleave_rows(quads + (size_t)group * COLUMN_BYTES * QUAD, from + row * view->row, view->row, y->size - row, width);
        }
        for (int i = 0; i < y->count; i++)
            variant->combine(out + i * row_bytes + start, quads + (size_t)y->group[i] * COLUMN_BYTES * QUAD, COLUMN_BYTES * QUAD,
                             y->weights + (size_t)i * y->width, y->groups[i], round_up(width, LANES));
    }
    free(quads);
    return DONE;
}

/* The vertical pass, and then the horizontal one where the width changes. */
static int resize_rows_first(const View *view, const Axis *x, const Axis *y, const Sink *sink, const Variant *variant) {
    size_t row_bytes = round_up((size_t)(x->stop - x->start) * view->pixel, LANES);
    if (row_bytes * y->count > MAX_SCRATCH) return UNSUPPORTED;
    uint8_t *rows = malloc(row_bytes * y->count);
    if (!rows) return OUT_OF_MEMORY;
    int status = resize_rows(rows, row_bytes, view, x, y, variant);
    View results = {rows, (ptrdiff_t)row_bytes, view->pixel, 1};
    if (status == DONE && x->needed) {
        Axis inner = *x; /* the rows begin at the first needed column */
        inner.start = 0;
        inner.size = inner.stop = x->stop - x->start;
        status = resize_columns(&results, 0, y->count, &inner, sink, variant);
    } else if (status == DONE) {
        for (int i = 0; i < y->count; i++) write_row(sink, &results, i, i, x->count);
    }
    free(rows);
    return status;
}

/* ---- what Python calls ---- */

/* Digest of the source that this library was compiled from. */
API const char *clipmlu_source_digest(void) { return CLIPMLU_SOURCE_DIGEST; }

/* Number of variants that this processor runs; the last is the fastest. */
API int clipmlu_variants(void) { return variant_count(); }

API const char *clipmlu_variant_name(int variant) { return variants[variant].name; }

/* An array of the Arrow C data interface (https://arrow.apache.org/docs/format/CDataInterface.html). */
typedef struct ArrowArray {
    int64_t length, null_count, offset, n_buffers, n_children;
    const void **buffers;
    struct ArrowArray **children;
    struct ArrowArray *dictionary;
    void (*release)(struct ArrowArray *);
    void *private_data;
} ArrowArray;

/* Address of an exported image's pixels: a list of `pixels` items of four bytes. NULL if the array is another one. */
API const void *clipmlu_arrow_pixels(const ArrowArray *array, int64_t pixels) {
    if (array->length != pixels || array->offset || array->n_children != 1) return NULL;
    const ArrowArray *bytes = array->children[0];
    if (bytes->length != 4 * pixels || bytes->offset || bytes->n_buffers != 2) return NULL;
    return bytes->buffers[1];
}

/* Resize an image as Pillow does and write a part of the result.
 *
 * pixels: rows of `row_bytes`, pixels of 3 or 4 bytes that begin with red, green, blue.
 * left, top, out_width, out_height: the part of the image resized to resized_width x resized_height.
 * cubic: 1 for Pillow's BICUBIC, 0 for BILINEAR.
 * rows_first: whether the vertical pass comes first.
 * table: 3 x 256 float32 values, or NULL for results of uint8; strides of `out` are in elements.
 */
API int clipmlu_resize(const uint8_t *pixels, int width, int height, int64_t row_bytes, int pixel_bytes, int resized_width,
                       int resized_height, int left, int top, int out_width, int out_height, int cubic, int rows_first, int variant,
                       const float *table, void *out, int64_t channel_stride, int64_t row_stride, int64_t column_stride) {
    if (width < 1 || height < 1 || width > MAX_SIDE || height > MAX_SIDE || resized_width > MAX_SIDE || resized_height > MAX_SIDE)
        return UNSUPPORTED;
    if (left < 0 || top < 0 || out_width < 1 || out_height < 1 || left > resized_width - out_width || top > resized_height - out_height)
        return UNSUPPORTED;
    if (pixel_bytes < 3 || pixel_bytes > 4 || variant < 0 || variant >= variant_count()) return UNSUPPORTED;
    const Variant *chosen = &variants[variant];
    View view = {pixels, (ptrdiff_t)row_bytes, pixel_bytes, 1};
    Sink sink = {out, table, (ptrdiff_t)channel_stride, (ptrdiff_t)row_stride, (ptrdiff_t)column_stride};
    Axis x = {.size = width, .resized = resized_width, .first = left, .count = out_width, .needed = width != resized_width};
    Axis y = {.size = height, .resized = resized_height, .first = top, .count = out_height, .needed = height != resized_height};
    int status = prepare_axis(&x, cubic, chosen);
    if (status == DONE) status = prepare_axis(&y, cubic, chosen);
    if (status == DONE && (size_t)groups_of(&x) * BLOCK_LANES * QUAD > MAX_SCRATCH) status = UNSUPPORTED;
    if (status == DONE) {
        if (x.needed && y.needed && !rows_first) {
            status = resize_columns_then_rows(&view, &x, &y, &sink, chosen);
        } else if (y.needed) {
            status = resize_rows_first(&view, &x, &y, &sink, chosen);
        } else if (x.needed) {
            status = resize_columns(&view, top, out_height, &x, &sink, chosen);
        } else {
            view.base += left * view.pixel;
            for (int i = 0; i < out_height; i++) write_row(&sink, &view, i, top + i, out_width);
        }
    }
    free_axis(&x);
    free_axis(&y);
    return status;
}
