//! What PostgreSQL keeps of a password: a verifier of SCRAM-SHA-256 (RFC 5803). It is made and compared here,
//! so that a password itself is in no statement, and in no log of one.

use std::num::NonZeroU32;

use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// How a verifier begins.
const KIND: &str = "SCRAM-SHA-256$";

/// What PostgreSQL takes by itself.
const ITERATIONS: NonZeroU32 = NonZeroU32::MIN.saturating_add(4095);

/// The most rounds that a verifier may ask for: comparing takes as long as they do. PostgreSQL's
/// `scram_iterations` may be two thousand times as many, which take many minutes.
pub const ITERATIONS_MAX: u32 = 1 << 20;

/// The verifier of `password`, which is of ASCII, with a salt that is to be drawn at random.
#[must_use]
pub fn verifier(password: &str, salt: &[u8; 16]) -> String {
    of(password, ITERATIONS, salt)
}

/// Whether `password` is the one of `verifier`, as `pg_authid` has it; none where that is of another kind, or
/// asks for more than [`ITERATIONS_MAX`] rounds.
#[must_use]
pub fn fits(password: &str, verifier: &str) -> Option<bool> {
    let (iterations, rest) = verifier.strip_prefix(KIND)?.split_once(':')?;
    let (salt, _) = rest.split_once('$')?;
    let salt = STANDARD.decode(salt).ok()?;
    let iterations = iterations.parse().ok().filter(|rounds: &NonZeroU32| rounds.get() <= ITERATIONS_MAX)?;
    Some(of(password, iterations, &salt) == verifier)
}

/// Whether `verifier` was made with this salt.
#[must_use]
pub fn has_salt(verifier: &str, salt: &[u8; 16]) -> bool {
    let parts = verifier.strip_prefix(KIND).and_then(|rest| rest.split_once(':'));
    let kept = parts.and_then(|(_, rest)| rest.split_once('$')).map(|(kept, _)| STANDARD.decode(kept));
    matches!(kept, Some(Ok(kept)) if kept == salt)
}

fn of(password: &str, iterations: NonZeroU32, salt: &[u8]) -> String {
    let mut salted = [0; digest::SHA256_OUTPUT_LEN];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, password.as_bytes(), &mut salted);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &salted);
    let stored = digest::digest(&digest::SHA256, hmac::sign(&key, b"Client Key").as_ref());
    let server = hmac::sign(&key, b"Server Key");
    let [salt, stored, server] = [salt, stored.as_ref(), server.as_ref()].map(|bytes| STANDARD.encode(bytes));
    format!("{KIND}{iterations}:{salt}${stored}:{server}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the example in RFC 7677.
    const PENCIL: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=\
         :wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    #[test]
    fn a_verifier_is_that_of_the_standard_s_example() {
        assert_eq!(fits("pencil", PENCIL), Some(true));
        assert_eq!(fits("pencils", PENCIL), Some(false));
    }

    #[test]
    fn what_is_made_fits_and_nothing_else_does() {
        let made = verifier("secret", &[7; 16]);
        assert_eq!((fits("secret", &made), fits("Secret", &made)), (Some(true), Some(false)));
        assert_ne!(made, verifier("secret", &[8; 16]));
        for other in [
            "",
            "md5abc",
            "SCRAM-SHA-256$x:y$z",
            "SCRAM-SHA-256$0:AA==$x:y",
            "SCRAM-SHA-256$9:!$x:y",
            "SCRAM-SHA-256$4294967295:AA==$x:y",
        ] {
            assert_eq!(fits("secret", other), None, "{other}");
        }
    }
}
