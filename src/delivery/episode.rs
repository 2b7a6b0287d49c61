//! What is told of an outage. Attempts go on for days, and what a human hears must not push everything else out of a ring of some
//! hundred diagnostics: so each kind of failure is told once between two successes, and parks are told when their number has doubled.

use std::mem::{Discriminant, discriminant};

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

#[cfg(test)]
mod tests {
    use super::*;

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
