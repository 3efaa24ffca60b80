//! Inputs that are like good ones: changed, cut, put together anew. By a seed, without a clock or dice.

/// Draws numbers (splitmix64).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// From this seed on.
    #[must_use]
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    /// A number below `count`; zero where that is zero.
    pub fn below(&mut self, count: usize) -> usize {
        let count = u64::try_from(count).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.draw() % count).unwrap_or_default()
    }

    fn byte(&mut self) -> u8 {
        self.draw().to_le_bytes()[0]
    }
}

/// Numbers at which something may change: what a decoder counts and compares with.
const NUMBERS: [u64; 24] = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    0x0F,
    0x10,
    0x20,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x1FFF,
    0x2000,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x0001_0000,
    0x7FFF_FFFF,
    0xFFFF_FFFF,
    0x7FFF_FFFF_FFFF_FFFF,
    0xFFFF_FFFF_FFFF_FFFF,
];

/// One of `inputs` with one to eight changes, and at most `most` bytes.
pub fn mutated(inputs: &[Vec<u8>], dice: &mut Dice, most: usize) -> Vec<u8> {
    let mut bytes = inputs.get(dice.below(inputs.len())).cloned().unwrap_or_default();
    // Mostly few: what is too different is refused at once.
    for _ in 0..=dice.below(8).min(dice.below(8)) {
        change(&mut bytes, inputs, dice);
    }
    bytes.truncate(most);
    bytes
}

fn change(bytes: &mut Vec<u8>, inputs: &[Vec<u8>], dice: &mut Dice) {
    let at = dice.below(bytes.len());
    let kind = dice.below(12);
    if bytes.is_empty() && kind < 8 {
        return bytes.push(dice.byte());
    }
    match kind {
        0 => bytes[at] ^= 1 << dice.below(8),
        1 => bytes[at] = dice.byte(),
        2 => bytes[at] = bytes[at].wrapping_add([1, 255, 16, 240][dice.below(4)]),
        // A number, of one to eight bytes, either byte first.
        3 | 4 => {
            let width = [1, 2, 4, 8][dice.below(4)].min(bytes.len() - at);
            let number = NUMBERS[dice.below(NUMBERS.len())];
            let number = if dice.below(8) == 0 { number.wrapping_sub(1) } else { number };
            let (little, big) = (number.to_le_bytes(), number.to_be_bytes());
            let number = if dice.below(2) == 0 { &little[..width] } else { &big[8 - width..] };
            bytes[at..at + width].copy_from_slice(number);
        }
        // Cut at either end, or in the middle.
        5 => bytes.truncate(at),
        6 => {
            let end = (at + 1 + dice.below(16)).min(bytes.len());
            drop(bytes.drain(at..end));
        }
        // Twice.
        7 => {
            let piece = bytes[at..(at + 1 + dice.below(64)).min(bytes.len())].to_vec();
            let to = dice.below(bytes.len() + 1);
            drop(bytes.splice(to..to, piece));
        }
        8 => {
            let new: Vec<u8> = (0..=dice.below(8)).map(|_| dice.byte()).collect();
            drop(bytes.splice(at..at, new));
        }
        // The beginning of it, and the end of another.
        9 => {
            if let Some(other) = inputs.get(dice.below(inputs.len())) {
                bytes.truncate(at);
                bytes.extend_from_slice(&other[dice.below(other.len() + 1)..]);
            }
        }
        // A piece of another in it.
        10 => {
            if let Some(other) = inputs.get(dice.below(inputs.len())) {
                let begin = dice.below(other.len());
                let end = (begin + 1 + dice.below(32)).min(other.len());
                drop(bytes.splice(at..at, other[begin..end].iter().copied()));
            }
        }
        // A number in digits.
        _ => {
            let number = NUMBERS[dice.below(NUMBERS.len())].to_string();
            let end = at + bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            drop(bytes.splice(at..end, number.into_bytes()));
        }
    }
}
