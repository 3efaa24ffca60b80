//! Whole-number arithmetic that neither overflows nor panics.

/// A second in microseconds.
pub(crate) const SECOND_US: u64 = 1_000_000;

/// `a * b / c`, rounded down; the largest number where it does not fit or `c` is zero.
pub(crate) fn mul_div(a: u64, b: u64, c: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product.checked_div(u128::from(c)).and_then(|q| u64::try_from(q).ok()).unwrap_or(u64::MAX)
}

/// The largest whole number whose cube is not above `n`.
pub(crate) fn cube_root(n: u64) -> u64 {
    let (mut low, mut high) = (0_u64, 2_642_245);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if middle.saturating_mul(middle).saturating_mul(middle) <= n {
            low = middle
        } else {
            high = middle - 1
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges() {
        assert_eq!(mul_div(u64::MAX, u64::MAX, 1), u64::MAX);
        assert_eq!(mul_div(7, 3, 0), u64::MAX);
        assert_eq!(mul_div(u64::MAX, 3, u64::MAX), 3);
        assert_eq!((cube_root(0), cube_root(26), cube_root(27), cube_root(u64::MAX)), (0, 2, 3, 2_642_245));
    }
}
