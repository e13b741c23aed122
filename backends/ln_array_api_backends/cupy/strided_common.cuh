// Shared by all elementwise and reduction kernels.
//
// Each output is a reduction over `length` elements, which is split into partial results. Partial p
// of P has elements p, p + P, ..., and a thread computes it. The split depends only on the length;
// so do the bits of all reductions over rows.

// The deviation of an element from the rounded mean, times range_scale. Times x_hat_scale, minus
// compute_x_hat_mean, it is x_hat.
template <class A>
__device__ A deviation(A x, A mean, A rstd) {
    return x * range_scale(rstd) - mean * range_scale(rstd);
}
template <class A>
__device__ A x_hat_scale(A rstd) {
    return rstd / range_scale(rstd);
}
template <class A>
__device__ A compute_x_hat_mean(A sum_deviation, double inv_count, A rstd) {
    return sum_deviation * A(inv_count) * x_hat_scale(rstd);
}

// Every inner_step-th element along axes that have at most two strides, the inner one with `length`
// elements. The next element is `byte_step` bytes further, and where the inner axis ends there,
// `wrap_step` more.
template <class T>
struct StridedIterator {
    const char* ptr;
    Index inner, length, inner_step, byte_step, wrap_step;

    __device__ StridedIterator(const T& first, Index index, Index length, Index inner_step,
                               Index byte_step, Index wrap_step)
        : ptr(reinterpret_cast<const char*>(&first)),
          inner(index % length),
          length(length),
          inner_step(inner_step),
          byte_step(byte_step),
          wrap_step(wrap_step) {}

    __device__ const T& element() const { return *reinterpret_cast<const T*>(ptr); }
    __device__ void next() {
        ptr += byte_step;
        inner += inner_step;
        if (inner >= length) {
            inner -= length;
            ptr += wrap_step;
        }
    }
};

template <class A>
__device__ int exponent_of(A size) {
    if (!(size <= Limits<A>::max_finite)) return 0;
    return size > 0 ? max(ilogb(size), Limits<A>::min_exponent) : Limits<A>::min_exponent;
}

// Where the largest value is that large, all are divided by 2 ** headroom before they are summed,
// so that the sum of a chunk does not overflow.
template <class A>
__device__ int headroom_for(A max_abs) {
    return max_abs > Limits<A>::max_summand ? 8 : 0;
}

// Moments of some elements of a row. Their mean is mean + mean_residual, and the sum of the squared
// differences from it is (m2 + m2_compensation) * 4 ** exponent: one number has neither the digits
// nor the range.
template <class A>
struct Moments {
    A count = 0, mean = 0, mean_residual = 0, m2 = 0, m2_compensation = 0;
    A exponent = A(Limits<A>::min_exponent);

    __device__ Moments() {}
    __device__ Moments(A count, A mean, A mean_residual, A m2, A m2_compensation, A exponent)
        : count(count), mean(mean), mean_residual(mean_residual), m2(m2),
          m2_compensation(m2_compensation), exponent(exponent) {}
};

// Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983, equation (1.5).
template <class A>
__device__ Moments<A> merge(const Moments<A>& a, const Moments<A>& b) {
    // The outputs that only pad the workspace have NaN for a count, and an exponent that is no int.
    if (!(b.count > 0)) return a;
    if (!(a.count > 0)) return b;
    const A count = a.count + b.count, weight = b.count / count;
    const int headroom = headroom_for(max(A(abs(a.mean)), A(abs(b.mean))));
    CompensatedSum<A> mean;
    mean.sum = scalbn(a.mean, -headroom);
    const A delta = (scalbn(b.mean, -headroom) - mean.sum) +
                    scalbn(b.mean_residual - a.mean_residual, -headroom);
    mean.add(delta * weight);
    const int exponent =
        max(max(int(a.exponent), int(b.exponent)), exponent_of(A(abs(delta))) + headroom);
    const A scaled = scalbn(delta, headroom - exponent);
    const int shift_a = 2 * (int(a.exponent) - exponent);
    const int shift_b = 2 * (int(b.exponent) - exponent);
    CompensatedSum<A> m2;
    m2.sum = scalbn(a.m2, shift_a);
    m2.compensation = scalbn(a.m2_compensation, shift_a) + scalbn(b.m2_compensation, shift_b);
    m2.add(scalbn(b.m2, shift_b));
    m2.add(scaled * scaled * a.count * weight);
    return Moments<A>(count, scalbn(mean.sum, headroom),
                      a.mean_residual + scalbn(mean.compensation, headroom), m2.sum,
                      m2.compensation, A(exponent));
}

constexpr int CHUNK = 32;  // elements that a thread keeps in registers

// The moments of the first `count` values. Where the mean is not subtracted, it counts as 0.
template <class A>
__device__ Moments<A> chunk_moments(A (&values)[CHUNK], int count, bool center) {
    A approx_mean = 0, mean_residual = 0, max_abs = 0, max_deviation = 0;
#pragma unroll
    for (int j = 0; j < CHUNK; ++j) max_abs = max(max_abs, A(abs(values[j])));
    const int headroom = headroom_for(max_abs);
    if (headroom > 0) {
#pragma unroll
        for (int j = 0; j < CHUNK; ++j) values[j] = scalbn(values[j], -headroom);
    }
    if (center) {
#pragma unroll
        for (int j = 1; j < CHUNK; ++j)
            if (j < count) approx_mean += values[j] - values[0];
        approx_mean = values[0] + approx_mean / A(count);
#pragma unroll
        for (int j = 0; j < CHUNK; ++j)
            if (j < count) mean_residual += values[j] - approx_mean;
        mean_residual /= A(count);
    }
#pragma unroll
    for (int j = 0; j < CHUNK; ++j)
        if (j < count)
            max_deviation = max(max_deviation, A(abs(values[j] - approx_mean - mean_residual)));
    const int exponent = exponent_of(max_deviation);
    CompensatedSum<A> m2;
#pragma unroll
    for (int j = 0; j < CHUNK; ++j) {
        const A d = scalbn(values[j] - approx_mean - mean_residual, -exponent);
        if (j < count) m2.add(d * d);
    }
    return Moments<A>(A(count), scalbn(approx_mean, headroom), scalbn(mean_residual, headroom),
                      m2.sum, m2.compensation, A(exponent + headroom));
}

template <class A, class T>
__device__ Moments<A> partial_moments(StridedIterator<T> it, Index count, bool center) {
    Moments<A> all;
    for (; count > 0; count -= CHUNK) {
        const int chunk_count = int(min(count, Index(CHUNK)));
        A values[CHUNK];
#pragma unroll
        for (int j = 0; j < CHUNK; ++j) {
            values[j] = j < chunk_count ? static_cast<A>(it.element()) : A(0);
            if (j < chunk_count) it.next();
        }
        all = merge(all, chunk_moments(values, chunk_count, center));
    }
    return all;
}

// The sum of squared differences from the mean, over 4 ** exponent.
template <class A>
__device__ double sum_of_squares(const Moments<A>& row) {
    return CompensatedSum<double>{row.m2, row.m2_compensation}.total();
}

template <class A>
__device__ void finalize_stats(const Moments<A>& row, double inv_count, double epsilon, A& mean,
                               A& mean_residual, A& rstd) {
    const int exponent = max(int(row.exponent), exponent_of(A(sqrt(epsilon))));
    // An epsilon that underflows is far below the variance, unless the row is constant. Then a
    // normal number in its place prevents 0 / 0.
    const double min_epsilon = epsilon > 0 ? double(Limits<A>::min_normal) : 0;
    const double m2 = sum_of_squares(row);
    const double variance = scalbn(m2, 2 * (int(row.exponent) - exponent)) * inv_count +
                            max(scalbn(epsilon, -2 * exponent), min_epsilon);
    rstd = A(scalbn(1 / sqrt(variance), -exponent));
    mean = row.mean + row.mean_residual;
    mean_residual = row.mean_residual - (mean - row.mean);
}

// The same, with the variance of the row. rstd is at most the largest finite number unless epsilon
// is 0.
template <class A>
__device__ void finalize_stats(const Moments<A>& row, double inv_count, double epsilon, A& mean,
                               A& mean_residual, A& var, A& rstd) {
    finalize_stats(row, inv_count, epsilon, mean, mean_residual, rstd);
    if (epsilon > 0 && rstd > Limits<A>::max_finite) rstd = Limits<A>::max_finite;
    var = A(scalbn(sum_of_squares(row) * inv_count, 2 * int(row.exponent)));
}

// Thread i computes one partial result of one output. Consecutive threads read consecutive memory.
struct ThreadPosition {
    Index output, partial;

    __device__ ThreadPosition(Index i, Index outputs, Index num_partials, bool coalesce_outputs)
        : output(coalesce_outputs ? i % outputs : i / num_partials),
          partial(coalesce_outputs ? i / outputs : i % num_partials) {}
    __device__ Index count(Index length, Index num_partials) const {
        return (length - partial + num_partials - 1) / num_partials;
    }
};
