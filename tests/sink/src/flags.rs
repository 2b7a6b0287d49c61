//! Flag requests: values and definitions. Both are set by the test; initially there are none.

use std::collections::VecDeque;

use hyper::Method;
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::batch::{self, Batch, text_of};
use crate::state::{Request, Shared};

/// The kinds of flag requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagRoute {
    /// Values for a person: `POST /flags/`, and `/decide/`.
    Values,
    /// Definitions: `GET /flags/definitions/`, and `/api/feature_flag/local_evaluation/`.
    Definitions,
    /// The payload of a remote config flag: `GET /api/projects/@current/feature_flags/<key>/remote_config`.
    RemoteConfig,
}

/// The responses of one route.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) script: VecDeque<Answer>,
    pub(crate) default: Answer,
}

/// The responses of the routes.
#[derive(Debug)]
pub(crate) struct Plans {
    values: Planned,
    definitions: Planned,
    remote_config: Planned,
}

impl Default for Plans {
    fn default() -> Self {
        let none_of = |body: Value| Planned { script: VecDeque::new(), default: Answer::json(&body) };
        Self {
            values: none_of(json!({"flags": {}, "errorsWhileComputingFlags": false})),
            definitions: none_of(json!({"flags": [], "group_type_mapping": {}, "cohorts": {}})),
            remote_config: Planned { script: VecDeque::new(), default: Answer::status(404) },
        }
    }
}

impl Plans {
    pub(crate) fn of(&mut self, route: FlagRoute) -> &mut Planned {
        match route {
            FlagRoute::Values => &mut self.values,
            FlagRoute::Definitions => &mut self.definitions,
            FlagRoute::RemoteConfig => &mut self.remote_config,
        }
    }
}

impl FlagRoute {
    /// The kind of request that a path is for, if it is a flag request.
    pub(crate) fn of(path: &str) -> Option<Self> {
        match path.trim_end_matches('/') {
            "/flags" | "/decide" => Some(FlagRoute::Values),
            "/flags/definitions" | "/api/feature_flag/local_evaluation" => Some(FlagRoute::Definitions),
            path if path.starts_with("/api/projects/@current/feature_flags/") && path.ends_with("/remote_config") => {
                Some(FlagRoute::RemoteConfig)
            }
            _ => None,
        }
    }

    pub(crate) fn method(self) -> Method {
        match self {
            FlagRoute::Values => Method::POST,
            FlagRoute::Definitions | FlagRoute::RemoteConfig => Method::GET,
        }
    }
}

/// The response to a flag request: the planned one, unless the request is invalid or the client has this version
/// already.
pub(crate) fn decide(shared: &Shared, route: FlagRoute, request: &Request, body: &[u8]) -> (Answer, Batch) {
    let planned = {
        let mut rules = shared.rules();
        let plan = rules.flags.of(route);
        plan.script.pop_front().unwrap_or_else(|| plan.default.clone())
    };
    let planned = planned.discarding();
    let is_good = planned.status == 200;
    match route {
        FlagRoute::Values => match serde_json::from_slice::<Value>(body) {
            Ok(request) => {
                let token = [text_of(&request, "token"), text_of(&request, "api_key")].concat();
                let is_whole = !token.is_empty() && !text_of(&request, "distinct_id").is_empty();
                let answer =
                    if is_good && !is_whole { batch::refused(400, "missing token or distinct_id") } else { planned };
                (answer, Batch { api_key: token, envelope: request, ..Batch::default() })
            }
            Err(error) if is_good => {
                (batch::refused(400, format!("failed to parse request: {error}")), Batch::default())
            }
            Err(_) => (planned, Batch::default()),
        },
        FlagRoute::RemoteConfig => {
            let is_authorized = request.header("authorization").is_some_and(|value| value.starts_with("Bearer ph"));
            let answer = if is_good && !is_authorized { Answer::status(401).discarding() } else { planned };
            (answer, Batch::default())
        }
        FlagRoute::Definitions => {
            let version = planned.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("etag"));
            let is_known = version.is_some_and(|(_, etag)| request.header("if-none-match") == Some(etag));
            let answer = if is_good && is_known {
                Answer { headers: planned.headers, delay: planned.delay, ..Answer::status(304).discarding() }
            } else {
                planned
            };
            (answer, Batch::default())
        }
    }
}
