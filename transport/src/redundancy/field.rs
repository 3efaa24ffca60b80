//! The field of 256 elements that repairs are computed in: bytes, with XOR for a sum, and products modulo
//! x^8 + x^4 + x^3 + x^2 + 1.

/// What x^8 is.
const REDUCED: u8 = 0x1D;

/// The powers of x, which are all elements but zero, twice over; and of which power each element is.
const POWERS: [u8; 510] = powers();
/// See [`POWERS`].
const EXPONENTS: [u8; 256] = exponents();

/// The product of two elements.
pub(crate) const fn multiply(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    POWERS[EXPONENTS[a as usize] as usize + EXPONENTS[b as usize] as usize]
}

/// The inverse of an element that is not zero; zero, which has none, stays zero.
pub(crate) const fn inverse(a: u8) -> u8 {
    if a == 0 { 0 } else { POWERS[255 - EXPONENTS[a as usize] as usize] }
}

const fn powers() -> [u8; 510] {
    let (mut powers, mut element, mut exponent) = ([0; 510], 1_u8, 0);
    while exponent < powers.len() {
        powers[exponent] = element;
        element = times_x(element);
        exponent += 1;
    }
    powers
}

const fn exponents() -> [u8; 256] {
    let (mut exponents, mut exponent) = ([0; 256], 0_u8);
    while exponent < u8::MAX {
        exponents[POWERS[exponent as usize] as usize] = exponent;
        exponent += 1;
    }
    exponents
}

const fn times_x(a: u8) -> u8 {
    (a << 1) ^ (REDUCED & (a >> 7).wrapping_neg())
}

/// Adds `bytes` times `factor` to as many bytes of `sum`.
pub(crate) fn add_scaled(sum: &mut [u8], bytes: &[u8], factor: u8) {
    // Without a table and a branch, so that the compiler does many at once.
    let bits: [u8; 8] = std::array::from_fn(|bit| ((factor >> bit) & 1).wrapping_neg());
    for (sum, byte) in sum.iter_mut().zip(bytes) {
        let (mut power, mut product) = (*byte, 0);
        for bit in bits {
            product ^= power & bit;
            power = times_x(power);
        }
        *sum ^= product;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_element_but_zero_has_an_inverse() {
        for a in 1..=u8::MAX {
            assert_eq!(multiply(a, inverse(a)), 1, "{a}");
        }
    }

    #[test]
    fn scaling_multiplies_each_byte() {
        let bytes: Vec<u8> = (0..=u8::MAX).collect();
        for factor in [0, 1, 2, 0x53, 0xFF] {
            let mut sum = vec![0x11; 256];
            add_scaled(&mut sum, &bytes, factor);
            let expected: Vec<u8> = bytes.iter().map(|byte| 0x11 ^ multiply(*byte, factor)).collect();
            assert_eq!(sum, expected);
        }
    }
}
