// What the elementwise and reduction kernels share: the preamble of strided.py and stages.py.
//
// A row is cut into slots: slot s of S has elements s, s + S, ... of the row, and a thread to itself.
// Which slot has an element depends on the row's length alone; so do the bits of all sums over rows.

using Index = long long;

// The dtype that values of a dtype are computed in.
template <class T>
struct Accumulation {
    using type = float;
};
template <>
struct Accumulation<double> {
    using type = double;
};

// Below the least, a scale of two to the minus exponent would be beyond the dtype's range.
template <class A>
struct Limits;
template <>
struct Limits<float> {
    static constexpr int least = -120;
    static constexpr float least_rstd = 0x1p-64f;
    static constexpr float large = 0x1p119f;
    static constexpr float most = 0x1.fffffep127f;
    static constexpr double smallest_normal = 0x1p-126;
};
template <>
struct Limits<double> {
    static constexpr int least = -1000;
    static constexpr double least_rstd = 0x1p-512;
    static constexpr double large = 0x1p1015;
    static constexpr double most = 0x1.fffffffffffffp1023;
    static constexpr double smallest_normal = 0x1p-1022;
};

// The power of two by which the deviations of a row are multiplied: neither they nor their sums
// overflow.
template <class A>
__device__ A range_scale(A rstd) {
    return rstd < Limits<A>::least_rstd ? Limits<A>::least_rstd : A(1);
}

// The deviation of an element from the rounded mean, times range_scale. Times `to_x_hat`, less
// `missed_by_mean`, it is x_hat.
template <class A>
__device__ A deviation(A x, A mean, A rstd) {
    return x * range_scale(rstd) - mean * range_scale(rstd);
}
template <class A>
__device__ A to_x_hat(A rstd) {
    return rstd / range_scale(rstd);
}
template <class A>
__device__ A missed_by_mean(A sum_deviation, double share, A rstd) {
    return sum_deviation * A(share) * to_x_hat(rstd);
}

// Every `ahead`th element along axes that lie in at most two strides, the inner of them `length`
// long. `advance` bytes lead to the next; where the inner one ends there, `wrap` more.
template <class T>
struct Walk {
    const char* place;
    Index inner, length, ahead, advance, wrap;

    __device__ Walk(const T& first, Index number, Index length, Index ahead, Index advance,
                    Index wrap)
        : place(reinterpret_cast<const char*>(&first)),
          inner(number % length),
          length(length),
          ahead(ahead),
          advance(advance),
          wrap(wrap) {}

    __device__ const T& element() const { return *reinterpret_cast<const T*>(place); }
    __device__ void next() {
        place += advance;
        inner += ahead;
        if (inner >= length) {
            inner -= length;
            place += wrap;
        }
    }
};

// A sum, and what its rounding has lost: Knuth, The Art of Computer Programming 2, 4.2.2, theorem B.
template <class A>
struct Sum {
    A sum = 0, lost = 0;

    __device__ void add(A value) {
        const A with = sum + value;
        const A added = with - sum;
        lost += (sum - (with - added)) + (value - added);
        sum = with;
    }
    // Beside an infinity, what was lost is NaN.
    __device__ A total() const { return lost == lost ? sum + lost : sum; }
};

template <class A>
__device__ int exponent_of(A size) {
    if (!(size <= Limits<A>::most)) return 0;
    return size > 0 ? max(ilogb(size), Limits<A>::least) : Limits<A>::least;
}

// Where the largest value is large, all are divided by 2 ** room_for before they are summed: the sum
// of a chunk does not overflow.
template <class A>
__device__ int room_for(A largest) {
    return largest > Limits<A>::large ? 8 : 0;
}

// Of some elements of a row: their mean is mean + missed, as one number cannot hold it, and the sum
// of the squared differences from it is (m2 + m2_missed) * 4 ** exponent, as one number may not
// reach so far.
template <class A>
struct Moments {
    A count = 0, mean = 0, missed = 0, m2 = 0, m2_missed = 0, exponent = A(Limits<A>::least);

    __device__ Moments() {}
    __device__ Moments(A count, A mean, A missed, A m2, A m2_missed, A exponent)
        : count(count), mean(mean), missed(missed), m2(m2), m2_missed(m2_missed),
          exponent(exponent) {}
};

// Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983, equation (1.5).
template <class A>
__device__ Moments<A> merge(const Moments<A>& a, const Moments<A>& b) {
    // Lines that only pad the workspace have NaN for a count: an exponent of theirs is no int.
    if (!(b.count > 0)) return a;
    if (!(a.count > 0)) return b;
    const A count = a.count + b.count, weight = b.count / count;
    const int room = room_for(max(A(abs(a.mean)), A(abs(b.mean))));
    Sum<A> mean;
    mean.sum = scalbn(a.mean, -room);
    const A delta = (scalbn(b.mean, -room) - mean.sum) + scalbn(b.missed - a.missed, -room);
    mean.add(delta * weight);
    const int exponent =
        max(max(int(a.exponent), int(b.exponent)), exponent_of(A(abs(delta))) + room);
    const A scaled = scalbn(delta, room - exponent);
    const int by_a = 2 * (int(a.exponent) - exponent), by_b = 2 * (int(b.exponent) - exponent);
    Sum<A> m2;
    m2.sum = scalbn(a.m2, by_a);
    m2.lost = scalbn(a.m2_missed, by_a) + scalbn(b.m2_missed, by_b);
    m2.add(scalbn(b.m2, by_b));
    m2.add(scaled * scaled * a.count * weight);
    return Moments<A>(count, scalbn(mean.sum, room), a.missed + scalbn(mean.lost, room), m2.sum,
                      m2.lost, A(exponent));
}

constexpr int CHUNK = 32;  // elements of a slot that a thread keeps in registers

// Where the mean is not subtracted, it counts as 0.
template <class A>
__device__ Moments<A> moments_of(A (&values)[CHUNK], int count, bool center) {
    A rough = 0, missed = 0, size = 0, largest = 0;
#pragma unroll
    for (int j = 0; j < CHUNK; ++j) size = max(size, A(abs(values[j])));
    const int room = room_for(size);
    if (room > 0) {
#pragma unroll
        for (int j = 0; j < CHUNK; ++j) values[j] = scalbn(values[j], -room);
    }
    if (center) {
#pragma unroll
        for (int j = 1; j < CHUNK; ++j)
            if (j < count) rough += values[j] - values[0];
        rough = values[0] + rough / A(count);
#pragma unroll
        for (int j = 0; j < CHUNK; ++j)
            if (j < count) missed += values[j] - rough;
        missed /= A(count);
    }
#pragma unroll
    for (int j = 0; j < CHUNK; ++j)
        if (j < count) largest = max(largest, A(abs(values[j] - rough - missed)));
    const int exponent = exponent_of(largest);
    Sum<A> m2;
#pragma unroll
    for (int j = 0; j < CHUNK; ++j) {
        const A d = scalbn(values[j] - rough - missed, -exponent);
        if (j < count) m2.add(d * d);
    }
    return Moments<A>(A(count), scalbn(rough, room), scalbn(missed, room), m2.sum, m2.lost,
                      A(exponent + room));
}

template <class A, class T>
__device__ Moments<A> moments_of_slot(Walk<T> walk, Index count, bool center) {
    Moments<A> all;
    for (; count > 0; count -= CHUNK) {
        const int few = int(min(count, Index(CHUNK)));
        A values[CHUNK];
#pragma unroll
        for (int j = 0; j < CHUNK; ++j) {
            values[j] = j < few ? static_cast<A>(walk.element()) : A(0);
            if (j < few) walk.next();
        }
        all = merge(all, moments_of(values, few, center));
    }
    return all;
}

template <class A>
__device__ void finish(const Moments<A>& row, double share, double epsilon, A& mean, A& missed,
                       A& rstd) {
    const int exponent = max(int(row.exponent), exponent_of(A(sqrt(epsilon))));
    // An epsilon that underflows is far below the variance, unless the row is constant: then it is
    // what keeps 0 / 0 away.
    const double floor = epsilon > 0 ? Limits<A>::smallest_normal : 0;
    const double m2 = Sum<double>{row.m2, row.m2_missed}.total();
    const double variance = scalbn(m2, 2 * (int(row.exponent) - exponent)) * share +
                            max(scalbn(epsilon, -2 * exponent), floor);
    rstd = A(scalbn(1 / sqrt(variance), -exponent));
    mean = row.mean + row.missed;
    missed = row.missed - (mean - row.mean);
}

// Thread i has slot s of line r, and consecutive threads what lies together in memory.
struct Place {
    Index line, slot;

    __device__ Place(Index i, Index lines, Index slots, bool lines_together)
        : line(lines_together ? i % lines : i / slots),
          slot(lines_together ? i / lines : i % slots) {}
    __device__ Index count(Index length, Index slots) const {
        return (length - slot + slots - 1) / slots;
    }
};
