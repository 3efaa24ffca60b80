//! The field of 256 elements that repairs are computed in: bytes, with XOR for a sum, and products modulo
//! x^8 + x^4 + x^3 + x^2 + 1.

/// What x^8 is.
const REDUCED: u8 = 0x1D;

/// The inverse of each element; zero, which has none, stays zero.
const INVERSES: [u8; 256] = inverses();

/// The product of two elements.
pub(crate) const fn multiply(a: u8, b: u8) -> u8 {
    let (mut a, mut b, mut product) = (a, b, 0);
    while b > 0 {
        if b & 1 == 1 {
            product ^= a;
        }
        a = if a & 0x80 > 0 { (a << 1) ^ REDUCED } else { a << 1 };
        b >>= 1;
    }
    product
}

/// The inverse of an element that is not zero.
pub(crate) const fn inverse(a: u8) -> u8 {
    INVERSES[a as usize]
}

const fn inverses() -> [u8; 256] {
    let mut inverses = [0; 256];
    let mut element = 1_u8;
    loop {
        // 255 is the order of the group, so the 254th power is the inverse: 2 + 4 + 8 + ... + 128.
        let (mut inverse, mut square, mut rounds) = (1, element, 0);
        while rounds < 7 {
            square = multiply(square, square);
            inverse = multiply(inverse, square);
            rounds += 1;
        }
        inverses[element as usize] = inverse;
        if element == u8::MAX {
            return inverses;
        }
        element += 1;
    }
}

/// Adds `bytes` times `factor` to as many bytes of `sum`.
pub(crate) fn add_scaled(sum: &mut [u8], bytes: &[u8], factor: u8) {
    let mut row = [0_u8; 256];
    for bit in 0..8 {
        let power = 1_usize << bit;
        let product = multiply(factor, 1 << bit);
        for low in 0..power {
            row[power | low] = row[low] ^ product;
        }
    }
    for (sum, byte) in sum.iter_mut().zip(bytes) {
        *sum ^= row[usize::from(*byte)];
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
