/* The sums [J r]^T [J r] of the two problems of benchmarks.kernel, written by hand.

   The upper triangle is written row by row. Rows are taken in tiles that stay in the first cache:
   the columns of a tile, then their products. The compiler makes vectors of the inner loops, and
   calls the exponential of the system's vector library (libmvec) where there is one. */

#include <math.h>

#define TILE 256

static void add_products(int q, double (*restrict a)[TILE], double *restrict sums)
{
    for (int j = 0, k = 0; j < q; ++j)
        for (int i = j; i < q; ++i, ++k) {
            double total = 0.0;
            for (int row = 0; row < TILE; ++row)
                total += a[j][row] * a[i][row];
            sums[k] += total;
        }
}

/* a exp(-b x) + c: all ten sums stay in registers. */
void exponential(const double *restrict x, const double *restrict y, long n,
                 const double *restrict theta, double *restrict sums)
{
    const double a = theta[0], b = theta[1], c = theta[2];
    double s00 = 0, s01 = 0, s02 = 0, s03 = 0, s11 = 0, s12 = 0, s13 = 0, s22 = 0, s23 = 0, s33 = 0;
    for (long i = 0; i < n; ++i) {
        const double e = exp(-b * x[i]);
        const double d = -a * x[i] * e;
        const double r = a * e + c - y[i];
        s00 += e * e;
        s01 += e * d;
        s02 += e;
        s03 += e * r;
        s11 += d * d;
        s12 += d;
        s13 += d * r;
        s22 += 1.0;
        s23 += r;
        s33 += r * r;
    }
    const double all[] = {s00, s01, s02, s03, s11, s12, s13, s22, s23, s33};
    for (int k = 0; k < 10; ++k)
        sums[k] = all[k];
}

/* Three Gaussians + c. The rows are a multiple of TILE. */
void gaussians(const double *restrict x, const double *restrict y, long n,
               const double *restrict theta, double *restrict sums)
{
    static _Thread_local double a[11][TILE] __attribute__((aligned(64)));
    for (int k = 0; k < 66; ++k)
        sums[k] = 0.0;
    for (int row = 0; row < TILE; ++row)
        a[9][row] = 1.0;
    for (long start = 0; start < n; start += TILE) {
        for (int row = 0; row < TILE; ++row)
            a[10][row] = theta[9] - y[start + row];
        for (int peak = 0; peak < 3; ++peak) {
            const double height = theta[3 * peak];
            const double center = theta[3 * peak + 1], inverse = 1.0 / theta[3 * peak + 2];
            for (int row = 0; row < TILE; ++row) {
                const double z = (x[start + row] - center) * inverse;
                const double e = exp(-0.5 * z * z);
                const double value = height * e, slope = value * z * inverse;
                a[3 * peak][row] = e;
                a[3 * peak + 1][row] = slope;
                a[3 * peak + 2][row] = slope * z;
                a[10][row] += value;
            }
        }
        add_products(11, a, sums);
    }
}
