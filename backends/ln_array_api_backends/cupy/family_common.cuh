// Elementary functions of tanh_dispatch.py and powers_dispatch.py; A is the accumulation dtype.

// g * a * b, without an intermediate result that is further from 1 than the factors or the result.
template <class A>
__device__ A product(A g, A a, A b) {
    return (a >= 1) == (b >= 1) ? g * a * b : g * (a * b);
}

// 1 / cosh(u), whose square is the slope of tanh. The square may be subnormal where this is not.
template <class A>
__device__ A sech(A u) {
    const A small = exp(-abs(u));
    return 2 * small / fma(small, small, A(1));
}

// value * 2 ** exponent. Only the fraction of the exponent needs few digits.
__device__ float times_exp2(float value, double exponent) {
    // Infinity and NaN are no integers.
    const double whole = abs(exponent) < 1e9 ? ceil(exponent) : 0;
    return scalbn(value * exp2f(float(exponent - whole)), int(whole));
}

// Signed powers z of x are sums over rows relative to z of a `base`, so that they and their squares
// neither overflow nor underflow. The base is near the largest magnitude of some elements. Both
// structs have the same members:
//
// ratio: (magnitude / base) ** alpha. `reference` is what it needs of the base;
// square: the square of ratio;
// slope: what `gradient` needs of a row, from the norm, or where that is out of range, from the sum
//   of squares of ratios;
// gradient: g * alpha * magnitude ** (alpha - 1) / norm.

// alpha = 1/2. The base is an even power of two, which rounds no ratio.
template <class A>
struct SquareRoots {
    double alpha;

    __device__ A base(A max_abs) const { return scalbn(A(1), exponent_of(max_abs) & ~1); }
    __device__ double reference(A base) const { return 1 / sqrt(double(base)); }
    __device__ A ratio(A magnitude, double reference) const {
        return sqrt(magnitude) * A(reference);
    }
    __device__ A square(A magnitude, double reference) const {
        return magnitude * A(reference * reference);
    }
    __device__ double slope(A base, A norm, A squares, bool in_range) const { return 0.5 / norm; }
    __device__ A gradient(A g, A magnitude, double reference, double slope) const {
        return product(g, 1 / sqrt(magnitude), A(slope));
    }
};

// Any alpha. Powers of float are computed from logarithms in double: the error of a power is alpha
// times that of the logarithm.
template <class A>
struct Powers {
    double alpha;

    __device__ A base(A max_abs) const { return max_abs > 0 ? max_abs : A(1); }
    __device__ double reference(A base) const { return log2(double(base)); }
    __device__ A ratio(A magnitude, double reference) const {
        if (!(magnitude > 0)) return magnitude;
        return times_exp2(1, alpha * (log2(double(magnitude)) - reference));
    }
    __device__ A square(A magnitude, double reference) const {
        const A power = ratio(magnitude, reference);
        return power * power;
    }
    __device__ double slope(A base, A norm, A squares, bool in_range) const {
        const double log_base = log2(double(base));
        const double of_norm = in_range ? alpha * log_base - log2(double(norm))
                                        : -0.5 * log2(double(squares));
        return log2(alpha) - log_base + of_norm;
    }
    __device__ A gradient(A g, A magnitude, double reference, double slope) const {
        return times_exp2(g, (alpha - 1) * (log2(double(magnitude)) - reference) + slope);
    }
};

// There is no wider dtype for logarithms. For alpha below 1, powers are in range but ratios may not
// be. For others, a ratio above LARGE_RATIO is computed from its distance to 1, since a power
// multiplies the rounding error of a ratio by alpha.
template <>
struct Powers<double> {
    static constexpr double LARGE_RATIO = 0.9;
    double alpha;

    __device__ double base(double max_abs) const { return max_abs > 0 ? max_abs : 1; }
    __device__ double reference(double base) const { return alpha < 1 ? pow(base, alpha) : base; }
    __device__ double ratio(double magnitude, double reference) const {
        if (alpha < 1) return pow(magnitude, alpha) / reference;
        const double quotient = magnitude / reference;
        if (quotient < LARGE_RATIO) return pow(quotient, alpha);
        return exp(alpha * log1p((magnitude - reference) / reference));
    }
    __device__ double square(double magnitude, double reference) const {
        const double power = ratio(magnitude, reference);
        return power * power;
    }
    __device__ double slope(double base, double norm, double squares, bool in_range) const {
        if (alpha < 1) return 1 / norm;
        const double half = pow(base, (alpha - 1) / 2);
        return in_range ? half / norm * half : 1 / sqrt(squares) / base;
    }
    __device__ double gradient(double g, double magnitude, double reference, double slope) const {
        // Not by the power of alpha - 1, which is rounded here.
        if (alpha < 1) return product(g, alpha * (pow(magnitude, alpha) / magnitude), slope);
        const double quotient = magnitude / reference;
        const double power = quotient < LARGE_RATIO ? pow(quotient, alpha - 1)
                                                    : ratio(magnitude, reference) / quotient;
        return product(g, alpha * power, slope);
    }
};

// Sums over some elements of a row, relative to powers of a base: of squares of z, and of dy * z.
template <class A>
struct PowerSums {
    A base = 0;
    CompensatedSum<A> squares, products;

    __device__ PowerSums() {}
    __device__ PowerSums(A base, A square_sum, A product_sum) : base(base) {
        squares.sum = square_sum;
        products.sum = product_sum;
    }
    __device__ void store(A& to_base, A& to_squares, A& to_products) const {
        to_base = base;
        to_squares = squares.total();
        to_products = products.total();
    }
};

template <class A>
__device__ void add_scaled(CompensatedSum<A>& sum, const CompensatedSum<A>& other, A factor) {
    sum.add(other.sum * factor);
    sum.compensation += other.compensation * factor;
}

template <class P, class A>
__device__ PowerSums<A> merge(const P& powers, const PowerSums<A>& a, const PowerSums<A>& b) {
    // Sums without elements have no base, and the outputs that only pad the workspace have NaN.
    if (!(b.base > 0)) return a;
    if (!(a.base > 0)) return b;
    // By value: references to one or the other would need a stack.
    PowerSums<A> all = a, other = b;
    if (a.base < b.base) {
        all = b;
        other = a;
    }
    const A factor = powers.ratio(other.base, powers.reference(all.base));
    add_scaled(all.squares, other.squares, factor * factor);
    add_scaled(all.products, other.products, factor);
    return all;
}

// y is the ratio of x times y_scale.
template <class P, class A>
__device__ void finalize_norm(const P& powers, const PowerSums<A>& row, double epsilon, A& norm,
                              double& reference, A& y_scale) {
    // With s = base ** alpha / sqrt(epsilon), the norm is s * sqrt(squares + 1 / s²), in units of
    // sqrt(epsilon). Where a power is out of range, it is taken as two factors.
    const double squares = row.squares.total(), base = row.base;
    const double half = pow(base, powers.alpha / 2), power = pow(base, powers.alpha);
    reference = powers.reference(row.base);
    if (epsilon == 0) {
        norm = A(half * sqrt(squares) * half);
        y_scale = A(1 / sqrt(squares));
        return;
    }
    const double root = max(sqrt(epsilon), double(Limits<A>::min_normal));
    const double s = power < Limits<double>::min_normal ? half / root * half : power / root;
    const bool above = s >= 1 && squares > 0;
    const double total = sqrt(above ? squares + 1 / (s * s) : squares * s * s + 1);
    norm = A(above ? half * total * half : root * total);
    y_scale = A(above ? 1 / total : s / total);
}

// Where the norm is out of range, epsilon does not matter: the powers are too large for it, or it
// would have brought the norm into range.
template <class P, class A>
__device__ void finalize_gradient(const P& powers, const PowerSums<A>& row, A norm,
                                  double& reference, A& y_scale, A& projection, double& slope) {
    const A squares = row.squares.total();
    const bool in_range = norm >= Limits<A>::min_normal && norm <= Limits<A>::max_finite;
    const double half = pow(double(row.base), powers.alpha / 2);
    reference = powers.reference(row.base);
    y_scale = A(in_range ? half / norm * half : 1 / sqrt(double(squares)));
    projection = row.products.total() * y_scale;
    slope = powers.slope(row.base, norm, squares, in_range);
}
