// Moments and sums over the windows around the elements of a line, a row or a column of a plane.
//
// A thread computes the windows around a few neighbours. Those share the elements in the middle of
// the windows, the core, and differ in a few at either end. Windows are cut where the line ends.
//
// Windows of two axes are merged from runs along a row and then down a column, where all runs have
// equally many elements. A mean is given by its difference from the element in the middle of its
// run or window, the deviation of that. So the error is that of differences within the window, and
// nothing depends on values outside.

// Elements that are summed before the sum is added to that of the others: errors do not grow with
// the size of a window.
constexpr int SUMMED_TOGETHER = 4;
// Neighbours whose windows a thread computes. The first must be in all of their windows.
constexpr int NEIGHBOURS = 4;
// Blocks of 256 threads that a multiprocessor must have registers for.
template <class T>
constexpr int PLANE_BLOCKS_PER_SM = Limits<Accumulator<T>>::IS_DOUBLE ? 2 : 4;
// The same of kernels that have a tile.
template <class T>
constexpr int TILE_BLOCKS_PER_SM = Limits<Accumulator<T>>::IS_DOUBLE ? 2 : 3;

// An axis, in elements counted from any place: where it begins and ends, and how far a window
// reaches to either side.
template <class Position>
struct Extent {
    Position begin, end, radius;
};

// Elements at equal distances.
template <class A, class Position>
struct Line {
    const A* ptr;
    Position stride;
    __device__ A operator[](Position k) const { return ptr[k * stride]; }
};

// The same, converted and multiplied by a power of two.
template <class T, class A>
struct ScaledLine {
    const T* ptr;
    Index stride;
    A factor;
    __device__ A operator[](Index k) const { return static_cast<A>(ptr[k * stride]) * factor; }
};

// Runs of single elements, whose deviation and variance are 0.
struct SingleElements {
    static constexpr bool SINGLE = true;
};

// Runs whose moments are at equal distances.
template <class A, class Position>
struct RunMoments {
    static constexpr bool SINGLE = false;
    const A *deviations, *variances;
    Position stride;
    __device__ A deviation(Position k) const { return deviations[k * stride]; }
    __device__ A variance(Position k) const { return variances[k * stride]; }
};

// The deviations from the mean, and the variances, of the windows around elements `first` and next.
// Those beyond the end of the axis are not set.
template <int COUNT, bool NEED_VARIANCE, class A, class Values, class Runs, class Position>
__device__ void window_moments(const Values& x, const Runs& runs, Position first,
                               const Extent<Position>& axis, A (&deviations)[COUNT],
                               A (&variances)[COUNT]) {
    constexpr int MORE = COUNT - 1;
    const A anchor = x[first];
    // The anchor minus the mean of run k.
    const auto offset = [&](Position k) {
        if constexpr (Runs::SINGLE)
            return anchor - x[k];
        else
            return (anchor - x[k]) + runs.deviation(k);
    };
    // The square of a difference from a mean, and the variance in run k.
    const auto square = [&](A d, Position k) {
        if constexpr (Runs::SINGLE)
            return d * d;
        else
            return d * d + runs.variance(k);
    };
    const Position begin = max(first + MORE - axis.radius, axis.begin);
    const Position end = min(first + axis.radius + 1, axis.end);
    A sum = 0;
    for (Position k = begin; k < end; ++k) sum += offset(k);
    const A core_count = A(end - begin), core_mean = sum / core_count;
    // The mean is approximate. The sum of differences from it is what it misses.
    A residual = 0;
    CompensatedSum<A> squares;
    for (Position k = begin; k < end;) {
        const Position stop = min(k + SUMMED_TOGETHER, end);
        A some = 0, some_squares = 0;
        for (; k < stop; ++k) {
            const A d = offset(k) - core_mean;
            some += d;
            if constexpr (NEED_VARIANCE) some_squares += square(d, k);
        }
        residual += some;
        if constexpr (NEED_VARIANCE) squares.add(some_squares);
    }
    const A core_squares = squares.total();
    // Of the elements before the core, window v has those from the v-th on. Of those after it, it
    // has the first v.
    const Position before = first - axis.radius, after = first + axis.radius + 1;
    A head[MORE + 1], tail[MORE + 1];
#pragma unroll
    for (int j = 0; j < MORE; ++j) {
        head[j] = before + j >= axis.begin ? offset(before + j) - core_mean : A(0);
        tail[j] = after + j < axis.end ? offset(after + j) - core_mean : A(0);
    }
#pragma unroll
    for (int v = 0; v < COUNT; ++v) {
        if (first + v >= axis.end) break;
        A total = residual, count = core_count;
#pragma unroll
        for (int j = 0; j < MORE; ++j) {
            const bool in_head = j >= v;
            total += in_head ? head[j] : tail[j];
            if (in_head ? before + j >= axis.begin : after + j < axis.end) count += 1;
        }
        const A shift = total / count;
        deviations[v] = ((x[first + v] - anchor) + core_mean) + shift;
        if constexpr (NEED_VARIANCE) {
            A window_squares = core_squares + shift * (core_count * shift - 2 * residual);
#pragma unroll
            for (int j = 0; j < MORE; ++j) {
                const bool in_head = j >= v;
                const Position k = in_head ? before + j : after + j;
                if (in_head ? k >= axis.begin : k < axis.end) {
                    window_squares += square((in_head ? head[j] : tail[j]) - shift, k);
                }
            }
            variances[v] = window_squares / count;
        }
    }
}

// Terms of the gradients of a run of windows: the sum of totals, and that of moments about the
// anchor, the element in the middle of the window with the largest total, whose magnitude is the
// weight.
template <class A>
struct Sums {
    A anchor = 0, weight = -1, total = 0, moment = 0;

    __device__ void add(const Sums& other) {
        const A old = anchor;
        if (!(weight >= other.weight)) {
            anchor = other.anchor;
            weight = other.weight;
        }
        moment = (moment + total * (old - anchor)) +
                 (other.moment + other.total * (other.anchor - anchor));
        total += other.total;
    }
    // Load or store the four numbers, which are in arrays that follow each other.
    template <class Position>
    __device__ static Sums load(const A* ptr, Position stride) {
        return {ptr[0], ptr[stride], ptr[2 * stride], ptr[3 * stride]};
    }
    template <class Position>
    __device__ void store(A* ptr, Position stride) const {
        ptr[0] = anchor;
        ptr[stride] = weight;
        ptr[2 * stride] = total;
        ptr[3 * stride] = moment;
    }
};

// Call a function with the number of neighbours that a thread computes.
template <class Position, class Body>
__device__ void by_neighbours(Position radius, Body body) {
    if (radius >= NEIGHBOURS - 1)
        body(Constant<NEIGHBOURS>());
    else
        body(Constant<1>());
}

// The sums over the windows around elements `first` and next. `sums_at` gives those of one run.
template <int COUNT, class A, class SumsAt, class Position>
__device__ void window_sums(const SumsAt& sums_at, Position first, const Extent<Position>& axis,
                            Sums<A> (&sums)[COUNT]) {
    constexpr int MORE = COUNT - 1;
    const Position begin = max(first + MORE - axis.radius, axis.begin);
    const Position end = min(first + axis.radius + 1, axis.end);
    Sums<A> sum;
    for (Position k = begin; k < end;) {
        const Position stop = min(k + SUMMED_TOGETHER, end);
        Sums<A> some = sums_at(k);
        for (++k; k < stop; ++k) some.add(sums_at(k));
        sum.add(some);
    }
    sums[MORE] = sum;
#pragma unroll
    for (int v = MORE - 1; v >= 0; --v) {
        const Position k = first - axis.radius + v;
        if (k >= axis.begin) sum.add(sums_at(k));
        sums[v] = sum;
    }
    Sums<A> tail;
#pragma unroll
    for (int v = 1; v < COUNT; ++v) {
        const Position k = first + axis.radius + v;
        if (k < axis.end) tail.add(sums_at(k));
        sums[v].add(tail);
    }
}

// The power of two that brings squares of numbers up to `max_abs` into range: a sum of 2^31 squares
// does not overflow, and the square of a difference of one ulp does not underflow. It is 1 for most
// data, and changes no bits of results in range.
template <class A>
__device__ A scale_factor(A max_abs, double root_of_epsilon) {
    const double least = max(double(max_abs), root_of_epsilon);
    if constexpr (Limits<A>::IS_DOUBLE) {
        if (max_abs >= 0x1p480) return 0x1p-700;
        return least < 0x1p-420 ? 0x1p700 : 1;
    } else {
        if (max_abs >= 0x1p46f) return max_abs < 0x1p108f ? 0x1p-62f : 0x1p-124f;
        if (least >= 0x1p-16) return 1;
        return least >= 0x1p-78 ? 0x1p62f : 0x1p124f;
    }
}

// The magnitude of a value, or 0 if it is not finite: that affects only its own windows.
template <class A>
__device__ A finite_magnitude(A value) {
    const A magnitude = abs(value);
    return magnitude <= Limits<A>::max_finite ? magnitude : A(0);
}

// Where and how results of the forward pass are written, of x multiplied by `factor`.
template <class T, class A>
struct ForwardOutput {
    T* y;
    A *mean, *rstd;
    A factor, epsilon, constant_rstd;

    __device__ ForwardOutput(T* y, A* mean, A* rstd, A factor, double epsilon, double constant_rstd)
        : y(y), mean(mean), rstd(rstd), factor(factor), constant_rstd(A(constant_rstd)) {
        const double scaled = epsilon * factor * factor;
        this->epsilon = epsilon > 0 ? max(A(scaled), Limits<A>::min_normal) : A(0);
    }
    __device__ void write(Index at, A x, A deviation, A variance) const {
        const A scaled_rstd = reciprocal_sqrt(variance + epsilon);
        y[at] = static_cast<T>(deviation * scaled_rstd);
        if (!mean) return;
        mean[at] = (x - deviation) * (1 / factor);
        // In a constant window, rstd depends only on epsilon, and may overflow if it is scaled.
        rstd[at] = variance == 0 ? constant_rstd : scaled_rstd * factor;
    }
};

// A product, rounded: the compiler would fuse it with a sum, and what is equal would not cancel.
template <class A>
__device__ A rounded(A product) {
    if constexpr (Limits<A>::IS_DOUBLE) {
        const unsigned long long bits = __double_as_longlong(product);
        unsigned low = unsigned(bits);
        forget(low);
        return __longlong_as_double((bits >> 32 << 32) | low);
    } else {
        int bits = __float_as_int(product);
        forget(bits);
        return __int_as_float(bits);
    }
}

// How gradients are kept in range, for x multiplied by a factor. Those of very large x are very
// small: until they are summed, they are multiplied by a power of two, `lift`, so that terms are
// not subnormal. rstd / factor overflows in a constant window of large values. Its factors `steepness`
// and `rest` do not, and are multiplied by the deviation, which is 0 there, one after the other.
template <class A>
struct GradientScale {
    A lift, steepness, rest;

    __device__ explicit GradientScale(A factor) {
        const A power = 0x1p44;
        lift = factor < 1 ? power : A(1);
        steepness = factor < 1 ? power : 1 / factor;
        rest = factor < 1 ? 1 / (factor * power) : A(1);
    }
    // The total and the moment of the window around an element.
    __device__ void terms(A dy, A rstd, A deviation, A count, A& total, A& moment) const {
        const A steep = rstd * steepness, per_element = own(dy, rstd) / count;
        total = per_element * (deviation * steep * rest) * rest * steep;
        moment = -(total * deviation + per_element);
    }
    // What the gradient of an element has of its own dy.
    __device__ A own(A dy, A rstd) const { return rounded(dy * (rstd * lift)); }
    __device__ A dx(A dy, A rstd, const Sums<A>& sums, A x) const {
        const A others = sums.moment + sums.total * (sums.anchor - x);
        return (own(dy, rstd) + others) * (1 / lift);
    }
};

// The number of elements of a window around element k of an axis.
template <class Position>
__device__ Position elements_in_window(Position k, const Extent<Position>& axis) {
    return min(k + axis.radius + 1, axis.end) - max(k - axis.radius, axis.begin);
}
