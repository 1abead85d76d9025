//! When warnings about a request's approaching deadline are due.

/// Warnings are due after these percentages of a request's time.
const WARNINGS: [u8; 2] = [50, 90];

/// Returns the percentage of the last warning that is due at `now`. All times are in milliseconds.
#[must_use]
pub fn latest(requested_at: i64, deadline: i64, now: i64) -> Option<u8> {
    WARNINGS.into_iter().rfind(|percent| due(requested_at, deadline, *percent) <= now)
}

/// Returns when the first warning after `now` is due.
#[must_use]
pub fn next(requested_at: i64, deadline: i64, now: i64) -> Option<i64> {
    WARNINGS.into_iter().map(|percent| due(requested_at, deadline, percent)).find(|due| *due > now)
}

/// Returns whether a warning for this percentage must be given: it is due, and no warning for it or a higher
/// percentage was given before (`warned`).
#[must_use]
pub fn is_new(requested_at: i64, deadline: i64, warned: Option<u8>, percent: u8, now: i64) -> bool {
    percent > warned.unwrap_or(0) && due(requested_at, deadline, percent) <= now
}

fn due(requested_at: i64, deadline: i64, percent: u8) -> i64 {
    let time = i128::from(deadline) - i128::from(requested_at);
    let part = time * i128::from(percent) / 100;
    i64::try_from(i128::from(requested_at) + part).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_due_at_half_and_nine_tenths_of_the_time() {
        let (requested_at, deadline) = (1000, 2000);
        for (now, last, then) in [
            (1000, None, Some(1500)),
            (1499, None, Some(1500)),
            (1500, Some(50), Some(1900)),
            (1899, Some(50), Some(1900)),
            (1900, Some(90), None),
            (3000, Some(90), None),
        ] {
            assert_eq!(
                (latest(requested_at, deadline, now), next(requested_at, deadline, now)),
                (last, then)
            );
        }
        for (percent, warned, now, wanted) in [
            (50, None, 1499, false),
            (50, None, 1500, true),
            (50, Some(50), 1600, false),
            (50, Some(90), 1950, false),
            (90, Some(50), 1899, false),
            (90, Some(50), 1900, true),
            (0, None, 1000, false),
        ] {
            assert_eq!(
                is_new(requested_at, deadline, warned, percent, now),
                wanted,
                "{percent} at {now}"
            );
        }
        assert_eq!(next(0, i64::MAX, 0), Some(i64::MAX / 2));
        assert_eq!(latest(0, i64::MIN, 0), Some(90));
    }
}
