// Local contrast norm for windows of any size: each launch goes through all of x, along one axis,
// and leaves what the next one needs in memory.
//
// The threads of a block have elements of one plane, and neighbouring threads neighbouring columns.
constexpr int PLANE_THREADS = 256;

// Write the largest magnitudes of the parts of each plane, of `length` elements, or fewer in the
// last part.
template <class T>
__global__ void __launch_bounds__(PLANE_THREADS, PLANE_BLOCKS_PER_SM<T>)
    plane_maxima(const T* __restrict__ x, Accumulator<T>* __restrict__ maxima, Index plane_length,
                 Index length, int parts) {
    using A = Accumulator<T>;
    __shared__ A shared[ThreadGroup<A, PLANE_THREADS>::SHARED];
    const Index begin = blockIdx.x % parts * length, end = min(begin + length, plane_length);
    x += blockIdx.x / parts * plane_length;
    A max_abs = 0;
    for (Index k = begin + threadIdx.x; k < end; k += PLANE_THREADS)
        max_abs = max(max_abs, finite_magnitude(static_cast<A>(x[k])));
    max_abs = ThreadGroup<A, PLANE_THREADS>(shared).reduce_max(max_abs);
    if (threadIdx.x == 0) maxima[blockIdx.x] = max_abs;
}

// A plane, as a block finds it: its first element, and the factor of x.
template <class A>
struct Plane {
    Index first, height, width, unit;
    A factor = 1;

    // A plane has `blocks` blocks. Its maximum is that of `parts` maxima; without any, x is not
    // scaled.
    __device__ Plane(Index height, Index width, unsigned blocks, const A* maxima, int parts,
                     double root_of_epsilon)
        : height(height), width(width) {
        const Index plane = blockIdx.x / blocks;
        first = plane * height * width;
        unit = Index(blockIdx.x % blocks) * PLANE_THREADS + threadIdx.x;
        A max_abs = 0;
        for (int part = threadIdx.x % WARP; part < parts; part += WARP)
            max_abs = max(max_abs, maxima[plane * parts + part]);
        max_abs = warp_reduce_max(max_abs);
        if (parts > 0) factor = scale_factor(max_abs, root_of_epsilon);
    }
};

// Call a function with the number of neighbours along a row, the row and the first column of the
// windows of a thread.
template <class A, class Body>
__device__ void across_plane(const Plane<A>& plane, Index radius, Body body) {
    by_neighbours(radius, [&](auto count) {
        constexpr int COUNT = decltype(count)::value;
        const Index groups = (plane.width + COUNT - 1) / COUNT;
        const Index row = plane.unit / groups;
        if (row < plane.height) body(count, row, (plane.unit - row * groups) * COUNT);
    });
}

// The same down a column, with the first row and the column.
template <class A, class Body>
__device__ void down_plane(const Plane<A>& plane, Index radius, Body body) {
    by_neighbours(radius, [&](auto count) {
        constexpr int COUNT = decltype(count)::value;
        const Index group = plane.unit / plane.width, row = group * COUNT;
        if (row < plane.height) body(count, row, plane.unit - group * plane.width);
    });
}

// Compute the moments of runs along rows.
template <class T, bool NEED_VARIANCE>
__global__ void __launch_bounds__(PLANE_THREADS, PLANE_BLOCKS_PER_SM<T>)
    plane_runs(const T* __restrict__ x, const Accumulator<T>* __restrict__ maxima,
               Accumulator<T>* __restrict__ deviations, Accumulator<T>* __restrict__ variances,
               Index height, Index width, unsigned blocks, int parts, Index radius,
               double root_of_epsilon) {
    using A = Accumulator<T>;
    const Plane<A> plane(height, width, blocks, maxima, parts, root_of_epsilon);
    across_plane(plane, radius, [&](auto count, Index row, Index column) {
        constexpr int COUNT = decltype(count)::value;
        const Index at = plane.first + row * width;
        A deviation[COUNT], variance[COUNT];
        window_moments<COUNT, NEED_VARIANCE>(ScaledLine<T, A>{x + at, 1, plane.factor},
                                             SingleElements(), column,
                                             Extent<Index>{0, width, radius}, deviation, variance);
#pragma unroll
        for (int v = 0; v < COUNT; ++v) {
            if (column + v >= width) break;
            deviations[at + column + v] = deviation[v];
            if constexpr (NEED_VARIANCE) variances[at + column + v] = variance[v];
        }
    });
}

// Compute the moments of windows from those of runs, and pass them to a function.
template <bool NEED_VARIANCE, class T, class A, class Output>
__device__ void plane_windows(const Plane<A>& plane, const T* x, const A* deviations,
                              const A* variances, Index radius, Output output) {
    down_plane(plane, radius, [&](auto count, Index row, Index column) {
        constexpr int COUNT = decltype(count)::value;
        const Index at = plane.first + column;
        const ScaledLine<T, A> line{x + at, plane.width, plane.factor};
        A deviation[COUNT], variance[COUNT];
        window_moments<COUNT, NEED_VARIANCE>(
            line, RunMoments<A, Index>{deviations + at, variances + at, plane.width}, row,
            Extent<Index>{0, plane.height, radius}, deviation, variance);
#pragma unroll
        for (int v = 0; v < COUNT; ++v) {
            if (row + v >= plane.height) break;
            output(row + v, column, line[row + v], deviation[v], variance[v]);
        }
    });
}

// Write y, and mean and rstd unless these are null.
template <class T>
__global__ void __launch_bounds__(PLANE_THREADS, PLANE_BLOCKS_PER_SM<T>)
    plane_forward(const T* __restrict__ x, const Accumulator<T>* __restrict__ maxima,
                  const Accumulator<T>* __restrict__ deviations,
                  const Accumulator<T>* __restrict__ variances, T* __restrict__ y,
                  Accumulator<T>* __restrict__ mean, Accumulator<T>* __restrict__ rstd,
                  Index height, Index width, unsigned blocks, int parts, Index radius,
                  double epsilon, double root_of_epsilon, double constant_rstd) {
    using A = Accumulator<T>;
    const Plane<A> plane(height, width, blocks, maxima, parts, root_of_epsilon);
    const ForwardOutput<T, A> results(y, mean, rstd, plane.factor, epsilon, constant_rstd);
    plane_windows<true>(plane, x, deviations, variances, radius,
                        [&](Index i, Index j, A value, A deviation, A variance) {
                            results.write(plane.first + i * width + j, value, deviation, variance);
                        });
}

// Compute the total and the moment of each window from the deviations of runs.
template <class T, class Dy>
__global__ void __launch_bounds__(PLANE_THREADS, PLANE_BLOCKS_PER_SM<T>)
    plane_terms(const Dy* __restrict__ dy, const T* __restrict__ x,
                const Accumulator<T>* __restrict__ rstd,
                const Accumulator<T>* __restrict__ maxima,
                const Accumulator<T>* __restrict__ deviations, Accumulator<T>* __restrict__ totals,
                Accumulator<T>* __restrict__ moments, Index height, Index width, unsigned blocks,
                int parts, Index radius_down, Index radius_across) {
    using A = Accumulator<T>;
    const Plane<A> plane(height, width, blocks, maxima, parts, 0.0);
    const GradientScale<A> scale(plane.factor);
    const Extent<Index> down{0, height, radius_down}, across{0, width, radius_across};
    plane_windows<false>(
        plane, x, deviations, deviations, radius_down,
        [&](Index i, Index j, A, A deviation, A) {
            const Index at = plane.first + i * width + j;
            const A count = A(elements_in_window(i, down)) * A(elements_in_window(j, across));
            scale.terms(static_cast<A>(dy[at]), rstd[at], deviation, count, totals[at],
                        moments[at]);
        });
}

// Compute the sums over runs along rows.
template <class T>
__global__ void __launch_bounds__(PLANE_THREADS, PLANE_BLOCKS_PER_SM<T>)
    plane_sums(const T* __restrict__ x, const Accumulator<T>* __restrict__ maxima,
               const Accumulator<T>* __restrict__ totals,
               const Accumulator<T>* __restrict__ moments, Accumulator<T>* __restrict__ sums,
               Index height, Index width, unsigned blocks, int parts, Index radius,
               Index sum_stride) {
    using A = Accumulator<T>;
    const Plane<A> plane(height, width, blocks, maxima, parts, 0.0);
    across_plane(plane, radius, [&](auto count, Index row, Index column) {
        constexpr int COUNT = decltype(count)::value;
        const Index at = plane.first + row * width;
        const ScaledLine<T, A> line{x + at, 1, plane.factor};
        Sums<A> run[COUNT];
        window_sums<COUNT>(
            [&](Index k) {
                const A total = totals[at + k];
                return Sums<A>{line[k], abs(total), total, moments[at + k]};
            },
            column, Extent<Index>{0, width, radius}, run);
#pragma unroll
        for (int v = 0; v < COUNT; ++v) {
            if (column + v >= width) break;
            run[v].store(sums + at + column + v, sum_stride);
        }
    });
}

// Write dx from the sums over runs.
template <class T, class Dy>
__global__ void __launch_bounds__(PLANE_THREADS, PLANE_BLOCKS_PER_SM<T>)
    plane_dx(const Dy* __restrict__ dy, const T* __restrict__ x,
             const Accumulator<T>* __restrict__ rstd, const Accumulator<T>* __restrict__ maxima,
             const Accumulator<T>* __restrict__ sums, T* __restrict__ dx, Index height, Index width,
             unsigned blocks, int parts, Index radius, Index sum_stride) {
    using A = Accumulator<T>;
    const Plane<A> plane(height, width, blocks, maxima, parts, 0.0);
    const GradientScale<A> scale(plane.factor);
    down_plane(plane, radius, [&](auto count, Index row, Index column) {
        constexpr int COUNT = decltype(count)::value;
        const Index first = plane.first + column;
        const ScaledLine<T, A> line{x + first, width, plane.factor};
        Sums<A> all[COUNT];
        window_sums<COUNT>(
            [&](Index k) { return Sums<A>::load(sums + first + k * width, sum_stride); }, row,
            Extent<Index>{0, height, radius}, all);
#pragma unroll
        for (int v = 0; v < COUNT; ++v) {
            if (row + v >= height) break;
            const Index at = first + (row + v) * width;
            dx[at] =
                static_cast<T>(scale.dx(static_cast<A>(dy[at]), rstd[at], all[v], line[row + v]));
        }
    });
}
