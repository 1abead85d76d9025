//! When people are warned that a question's deadline comes near.

/// After so much of a question's time, in percent.
const WARNINGS: [u8; 2] = [50, 90];

/// The last warning that is due at `now`. All times are in milliseconds.
#[must_use]
pub fn latest(asked_at: i64, deadline: i64, now: i64) -> Option<u8> {
    WARNINGS.into_iter().rfind(|percent| due(asked_at, deadline, *percent) <= now)
}

/// When the first warning is due after `now`.
#[must_use]
pub fn next(asked_at: i64, deadline: i64, now: i64) -> Option<i64> {
    WARNINGS.into_iter().map(|percent| due(asked_at, deadline, percent)).find(|due| *due > now)
}

/// Whether people are to be warned that so much of the time has passed, in percent: it has, and they
/// were not `warned` of as much before.
#[must_use]
pub fn is_new(asked_at: i64, deadline: i64, warned: Option<u8>, percent: u8, now: i64) -> bool {
    percent > warned.unwrap_or(0) && due(asked_at, deadline, percent) <= now
}

fn due(asked_at: i64, deadline: i64, percent: u8) -> i64 {
    let time = i128::from(deadline) - i128::from(asked_at);
    let part = time * i128::from(percent) / 100;
    i64::try_from(i128::from(asked_at) + part).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_time_and_most_of_it_are_told() {
        let (asked, deadline) = (1000, 2000);
        for (now, last, then) in [
            (1000, None, Some(1500)),
            (1499, None, Some(1500)),
            (1500, Some(50), Some(1900)),
            (1899, Some(50), Some(1900)),
            (1900, Some(90), None),
            (3000, Some(90), None),
        ] {
            assert_eq!((latest(asked, deadline, now), next(asked, deadline, now)), (last, then));
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
            assert_eq!(is_new(asked, deadline, warned, percent, now), wanted, "{percent} at {now}");
        }
        assert_eq!(next(0, i64::MAX, 0), Some(i64::MAX / 2));
        assert_eq!(latest(0, i64::MIN, 0), Some(90));
    }
}
