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
    static constexpr float most = 0x1.fffffep127f;
    static constexpr double smallest_normal = 0x1p-126;
};
template <>
struct Limits<double> {
    static constexpr int least = -1000;
    static constexpr double most = 0x1.fffffffffffffp1023;
    static constexpr double smallest_normal = 0x1p-1022;
};

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

// Of some elements of a row: their mean is mean + missed, as one number cannot hold it, and the sum
// of the squared differences from it is m2 * 4 ** exponent, as one number may not reach so far.
template <class A>
struct Moments {
    A count = 0, mean = 0, missed = 0, m2 = 0, exponent = A(Limits<A>::least);

    __device__ Moments() {}
    __device__ Moments(A count, A mean, A missed, A m2, A exponent)
        : count(count), mean(mean), missed(missed), m2(m2), exponent(exponent) {}
};

// Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983, equation (1.5).
template <class A>
__device__ Moments<A> merge(const Moments<A>& a, const Moments<A>& b) {
    // Lines that only pad the workspace have NaN for a count: an exponent of theirs is no int.
    if (!(b.count > 0)) return a;
    if (!(a.count > 0)) return b;
    const A count = a.count + b.count, weight = b.count / count;
    const A delta = (b.mean - a.mean) + (b.missed - a.missed);
    Sum<A> mean;
    mean.sum = a.mean;
    mean.add(delta * weight);
    const int exponent =
        max(max(int(a.exponent), int(b.exponent)), exponent_of(A(abs(delta))));
    const A scaled = scalbn(delta, -exponent);
    const A m2 = scalbn(a.m2, 2 * (int(a.exponent) - exponent)) +
                 scalbn(b.m2, 2 * (int(b.exponent) - exponent)) +
                 scaled * scaled * a.count * weight;
    return Moments<A>(count, mean.sum, a.missed + mean.lost, m2, A(exponent));
}

constexpr int CHUNK = 32;  // elements of a slot that a thread keeps in registers

// Where the mean is not subtracted, it counts as 0.
template <class A>
__device__ Moments<A> moments_of(const A (&values)[CHUNK], int count, bool center) {
    A rough = 0, missed = 0, largest = 0, m2 = 0;
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
#pragma unroll
    for (int j = 0; j < CHUNK; ++j) {
        const A d = scalbn(values[j] - rough - missed, -exponent);
        if (j < count) m2 += d * d;
    }
    return Moments<A>(A(count), rough, missed, m2, A(exponent));
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
    const A variance = scalbn(row.m2, 2 * (int(row.exponent) - exponent)) * A(share) +
                       A(max(scalbn(epsilon, -2 * exponent), floor));
    rstd = scalbn(1 / sqrt(variance), -exponent);
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
