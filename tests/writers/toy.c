/* A Qwen2 in 40 lines of C that shows its stages: toy WEIGHTS THETA EPS D N K H F V LAYERS ID... */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#define QWENREF_DUMP_IMPLEMENTATION
#include "qwenref_dump.h"
static FILE *f;
static float *take(size_t n) { float *w = malloc(4 * n); if (fread(w, 4, n, f) != n) exit(3); return w; }
static float *mul(const float *x, int T, int I, const float *w, int O) { /* x [T, I] times w [O, I] */
    float *y = calloc((size_t)T * O, 4);
    for (int t = 0; t < T; t++) for (int o = 0; o < O; o++) for (int i = 0; i < I; i++) y[t * O + o] += x[t * I + i] * w[o * I + i];
    return y; }
static float *norm(const float *x, int T, int D, const float *gain, float eps) {
    float *y = malloc(4ul * T * D);
    for (int t = 0; t < T; t++) { float s = 0; for (int i = 0; i < D; i++) s += x[t * D + i] * x[t * D + i];
        for (int i = 0; i < D; i++) y[t * D + i] = x[t * D + i] / sqrtf(s / D + eps) * gain[i]; }
    return y; }
static void turn(float *x, int T, int step, int heads, int H, double theta) {
    for (int t = 0; t < T; t++) for (int h = 0; h < heads; h++) for (int j = 0; j < H / 2; j++) {
        float *p = x + t * step + h * H + j, a = p[0], b = p[H / 2], w = (float)t * (float)pow(theta, -2.0 * j / H);
        p[0] = a * cosf(w) - b * sinf(w); p[H / 2] = b * cosf(w) + a * sinf(w); } }
int main(int n, char **a) {
    double theta = atof(a[2]), eps = atof(a[3]);
    int D = atoi(a[4]), N = atoi(a[5]), K = atoi(a[6]), H = atoi(a[7]), F = atoi(a[8]), V = atoi(a[9]), L = atoi(a[10]), T = n - 11, E = (N + 2 * K) * H;
    int32_t ids[64]; for (int t = 0; t < T; t++) ids[t] = atoi(a[11 + t]);
    f = fopen(a[1], "rb"); float *embed = take((size_t)V * D), *x = malloc(4ul * T * D);
    for (int t = 0; t < T; t++) for (int i = 0; i < D; i++) x[t * D + i] = embed[ids[t] * D + i];
    qwenref_dump_ids("tokens", ids, T); qwenref_dump("embedding", 0, x, T, D);
    for (int l = 0; l < L; l++) {
        float *h = norm(x, T, D, take(D), eps); qwenref_dump("attn_norm", l, h, T, D);
        float *qkv = mul(h, T, D, take((size_t)E * D), E), *b = take(E), *q = malloc(4ul * T * E), *mix = calloc((size_t)T * N * H, 4); qwenref_dump("qkv_matmul", l, qkv, T, E);
        for (int i = 0; i < T * E; i++) q[i] = qkv[i] += b[i % E];
        qwenref_dump("qkv_bias", l, qkv, T, E); turn(q, T, E, N + K, H, theta);
        for (int t = 0; t < T; t++) for (int m = 0; m < N; m++) { float p[64], top = -1e30f, sum = 0; int k = N * H + m / (N / K) * H;
            for (int s = 0; s <= t; s++) { p[s] = 0; for (int i = 0; i < H; i++) p[s] += q[t * E + m * H + i] * q[s * E + k + i]; p[s] /= sqrtf(H); top = fmaxf(top, p[s]); }
            for (int s = 0; s <= t; s++) sum += p[s] = expf(p[s] - top);
            for (int s = 0; s <= t; s++) for (int i = 0; i < H; i++) mix[(t * N + m) * H + i] += p[s] / sum * qkv[s * E + K * H + k + i]; }
        float *o = mul(mix, T, N * H, take((size_t)D * N * H), D); qwenref_dump("attention", l, mix, T, N * H); qwenref_dump("attn_out", l, o, T, D);
        for (int i = 0; i < T * D; i++) x[i] += o[i];
        qwenref_dump("post_attn_residual", l, x, T, D); h = norm(x, T, D, take(D), eps); qwenref_dump("ffn_norm", l, h, T, D);
        float *g = mul(h, T, D, take((size_t)F * D), F), *u = mul(h, T, D, take((size_t)F * D), F); qwenref_dump("ffn_gate", l, g, T, F); qwenref_dump("ffn_up", l, u, T, F);
        for (int i = 0; i < T * F; i++) g[i] = g[i] / (1 + expf(-g[i])) * u[i];
        qwenref_dump("ffn_swigl", l, g, T, F); o = mul(g, T, F, take((size_t)D * F), D); qwenref_dump("ffn_out", l, o, T, D);
        for (int i = 0; i < T * D; i++) x[i] += o[i];
        qwenref_dump("post_ffn_residual", l, x, T, D); }
    x = norm(x, T, D, take(D), eps); qwenref_dump("final_norm", -1, x, T, D); qwenref_dump("lm_head", -1, mul(x + (T - 1) * D, 1, D, take((size_t)V * D), V), 1, V);
    return 0; }
