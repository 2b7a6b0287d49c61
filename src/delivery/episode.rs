//! What is told of an outage. Attempts go on for days, and what a human hears must not push everything else out of a ring of some
//! hundred diagnostics: so each kind of failure is told once between two successes, and parks are told when their number has doubled.

use std::collections::HashMap;
use std::mem::{Discriminant, discriminant};
use std::time::{Duration, Instant};

use super::Notice;

/// What was told since the endpoint last worked.
#[derive(Debug, Default)]
pub(super) struct Episode {
    kinds: Vec<Discriminant<Notice>>,
    parks: u32,
}

impl Episode {
    /// Whether a failure is the first of its kind; from now on it is not.
    pub(super) fn is_news(&mut self, notice: &Notice) -> bool {
        let kind = discriminant(notice);
        let is_news = !self.kinds.contains(&kind);
        if is_news {
            self.kinds.push(kind);
        }
        is_news
    }

    /// Counts a park, and says whether it is the first, second, fourth, eighth and so on.
    pub(super) fn is_park_told(&mut self) -> bool {
        self.parks = self.parks.saturating_add(1);
        self.parks.is_power_of_two()
    }
}

/// Whoever is not mentioned for so long is news again.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// So many are remembered at most.
const MAX_MENTIONED: usize = 64;

/// What a server says with one answer after the other, and is told once for as long as it goes on. Not every answer says it: it
/// depends on what is in the request.
#[derive(Debug, Default)]
pub(super) struct Mentions {
    last: HashMap<String, Instant>,
}

impl Mentions {
    /// Whether this was not mentioned of late; from now on it was.
    pub(super) fn is_news(&mut self, what: &str, now: Instant) -> bool {
        self.last.retain(|_, at| now.saturating_duration_since(*at) < FORGOTTEN);
        if self.last.len() >= MAX_MENTIONED && !self.last.contains_key(what) {
            return false;
        }
        self.last.insert(what.to_owned(), now).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_again_and_again_is_news_once_and_after_an_hour_of_silence() {
        let (mut mentions, now) = (Mentions::default(), Instant::now());
        let minutes = |minutes: u64| now + Duration::from_secs(60 * minutes);
        let told: Vec<_> = (0..300).filter(|&minute| mentions.is_news("events", minutes(minute))).collect();
        assert_eq!(told, [0]);
        assert!(mentions.is_news("exceptions", minutes(299)) && !mentions.is_news("events", minutes(300)));
        assert!(mentions.is_news("events", minutes(360)));
        (0..1000).for_each(|nth| assert!(mentions.is_news(&nth.to_string(), minutes(360)) == (nth < 63)));
    }

    fn failed(status: u16) -> Notice {
        Notice::ServerFailed { status, text: String::new() }
    }

    #[test]
    fn each_kind_of_failure_is_news_once_in_an_episode() {
        let mut episode = Episode::default();
        let news = [failed(503), failed(502), Notice::TransportFailed { reason: String::new() }, failed(503)];
        assert_eq!(news.map(|notice| episode.is_news(&notice)), [true, false, true, false]);
        assert!(Episode::default().is_news(&failed(503)));
    }

    #[test]
    fn of_a_day_of_parks_nine_are_told() {
        let mut episode = Episode::default();
        assert_eq!((0..400).filter(|_| episode.is_park_told()).count(), 9);
    }
}
