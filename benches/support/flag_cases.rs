//! Flag definitions and a person to evaluate them for: the same for this library and for a peer.

use serde_json::{Map, Value, json};

/// Number of values in a list or cohort.
const MEMBERS: usize = 10_000;
pub(crate) const DISTINCT_ID: &str = "user_clerk_id_1234567890";

/// One case: definitions and a person.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// The response of `/flags/definitions`.
    pub(crate) definitions: String,
    pub(crate) keys: Vec<String>,
    pub(crate) person: Map<String, Value>,
    /// Whether its parsing is measured; several cases may have the same definitions.
    pub(crate) is_parsed: bool,
}

pub(crate) fn cases() -> Vec<Case> {
    let boolean = json!({"flags": [three_conditions("checkout", true)]});
    let none = json!({"flags": [three_conditions("checkout", false)]});
    let one_of_five = json!({"flags": [variants("button")]});
    let hundred: Vec<Value> = (0..100)
        .map(|at| match at % 5 {
            0 => variants(&format!("flag-{at}")),
            of => three_conditions(&format!("flag-{at}"), of < 3),
        })
        .collect();
    let members: Vec<String> = (0..MEMBERS).map(email).collect();
    let listed = test("email", "exact", json!(members));
    let list = json!({"flags": [{"key": "beta", "active": true, "filters": {"groups": [{"properties": [listed]}]}}]});
    let in_cohort = json!({"key": "id", "type": "cohort", "value": 7});
    let cohort = json!({
        "flags": [{"key": "beta", "active": true, "filters": {"groups": [{"properties": [in_cohort]}]}}],
        "cohorts": {"7": {"type": "OR", "values": [{"type": "AND", "values": [listed]}]}}
    });
    let (member, stranger) = (email(MEMBERS / 2), email(MEMBERS));
    vec![
        Case::new("boolean, the last of three conditions matches", &boolean, &member),
        Case::new("boolean, none of three conditions matches", &none, &member).again(),
        Case::new("five variants", &one_of_five, &member),
        Case::new("100 flags", &json!({"flags": hundred}), &member),
        Case::new("a list of 10,000 values, in it", &list, &member),
        Case::new("a list of 10,000 values, not in it", &list, &stranger).again(),
        Case::new("a cohort of 10,000 values, in it", &cohort, &member),
        Case::new("a cohort of 10,000 values, not in it", &cohort, &stranger).again(),
    ]
}

impl Case {
    fn new(name: &'static str, definitions: &Value, email: &str) -> Self {
        let flags = definitions["flags"].as_array().into_iter().flatten();
        let keys = flags.filter_map(|flag| flag["key"].as_str().map(str::to_owned)).collect();
        let person = [("plan", json!("pro")), ("seats", json!(12)), ("country", json!("DE")), ("email", json!(email))];
        let person = person.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { name, definitions: definitions.to_string(), keys, person, is_parsed: true }
    }

    fn again(mut self) -> Self {
        self.is_parsed = false;
        self
    }
}

fn email(member: usize) -> String {
    format!("user-{member}@customer.example.com")
}

fn test(name: &str, operator: &str, value: Value) -> Value {
    json!({"key": name, "type": "person", "operator": operator, "value": value})
}

/// A flag with three conditions, of which the first two match none of the persons.
fn three_conditions(key: &str, last_matches: bool) -> Value {
    let countries = if last_matches { json!(["AT", "CH", "DE"]) } else { json!(["FR", "IT", "ES"]) };
    json!({"key": key, "active": true, "filters": {"groups": [
        {"properties": [test("plan", "exact", json!(["pro", "team"])), test("seats", "gt", json!(1000))]},
        {"properties": [test("email", "icontains", json!("@staff.example.com"))], "rollout_percentage": 50},
        {"properties": [test("country", "exact", countries)], "rollout_percentage": 99.99}
    ]}})
}

fn variants(key: &str) -> Value {
    let variants = ["control", "red", "green", "blue", "grey"].map(|key| json!({"key": key, "rollout_percentage": 20}));
    json!({"key": key, "active": true, "filters": {
        "groups": [{"properties": [test("plan", "exact", json!("pro"))], "rollout_percentage": 99.99}],
        "multivariate": {"variants": variants}
    }})
}
