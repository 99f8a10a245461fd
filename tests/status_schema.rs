//! `docs/status.schema.json` says what `rustbalance status --json` has. It is generated from the
//! types and their comments; `tests/hostile/reports.rs` holds real daemons to it.
//!
//! After a change: `RUSTBALANCE_WRITE_DOCS=1 cargo test --workspace --test status_schema`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use regex::Regex;
use serde_json::{Value, json};

#[path = "fixtures/schema.rs"]
mod schema;

/// Where the types are.
const SOURCES: [&str; 6] = [
    "src/control/status.rs",
    "src/control/problem.rs",
    "src/control/canary.rs",
    "gossip/src/record/certificate.rs",
    "gossip/src/view/condition.rs",
    "gossip/src/coordinator/isolation.rs",
];
const FILE: &str = "docs/status.schema.json";

/// A type as its source defines it.
struct Definition {
    description: String,
    is_enum: bool,
    /// How serde writes the names of variants.
    case: String,
    body: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of doc comments in these lines.
fn comment(lines: &str) -> String {
    let lines = lines.lines().filter_map(|line| line.trim().strip_prefix("///")).map(str::trim);
    let text = Vec::from_iter(lines).join(" ");
    // Links to code mean nothing to a reader of the schema.
    Regex::new(r"\[`([^`]+)`\](\([^)]*\))?").unwrap().replace_all(&text, "$1").replace('`', "")
}

fn definitions() -> BTreeMap<String, Definition> {
    let pattern = r"(?ms)^((?:///[^\n]*\n|#\[[^\n]*\n|    [^\n]*\n|\)\]\n)*)pub (struct|enum) (\w+) \{\n(.*?)^\}";
    let pattern = Regex::new(pattern).unwrap();
    let case = Regex::new(r#"serde\(rename_all = "([\w-]+)"\)"#).unwrap();
    let mut found = BTreeMap::new();
    for source in SOURCES {
        let text = fs::read_to_string(root().join(source)).unwrap();
        for it in pattern.captures_iter(&text) {
            let definition = Definition {
                description: comment(&it[1]),
                is_enum: &it[2] == "enum",
                case: case.captures(&it[1]).map(|case| case[1].to_owned()).unwrap_or_default(),
                body: it[4].to_owned(),
            };
            found.insert(it[3].to_owned(), definition);
        }
    }
    found
}

/// The name of a variant as serde writes it.
fn cased(name: &str, case: &str) -> String {
    let with = |mark: &str| {
        let words = Regex::new("[A-Z][a-z0-9]*").unwrap();
        let words: Vec<_> = words.find_iter(name).map(|word| word.as_str().to_lowercase()).collect();
        words.join(mark)
    };
    match case {
        "lowercase" => name.to_lowercase(),
        "kebab-case" => with("-"),
        "snake_case" => with("_"),
        other => panic!("{name}: how does serde write names as {other:?}?"),
    }
}

/// The schema of a value of this Rust type. Adds the types that it names to `named`.
fn of_type(text: &str, named: &mut BTreeSet<String>) -> Value {
    let inner = |outer: &str| text.strip_prefix(outer).and_then(|rest| rest.strip_suffix('>'));
    if let Some(some) = inner("Option<") {
        return json!({ "anyOf": [of_type(some, named), { "type": "null" }] });
    }
    if let Some(item) = inner("Vec<") {
        return json!({ "type": "array", "items": of_type(item, named) });
    }
    if let Some(value) = inner("BTreeMap<String, ") {
        return json!({ "type": "object", "additionalProperties": of_type(value, named) });
    }
    match text {
        "String" => json!({ "type": "string" }),
        "bool" => json!({ "type": "boolean" }),
        "u8" | "u16" | "u32" | "u64" | "usize" => json!({ "type": "integer", "minimum": 0 }),
        "i64" => json!({ "type": "integer" }),
        "f32" | "f64" => json!({ "type": "number" }),
        name => {
            named.insert(name.to_owned());
            json!({ "$ref": format!("#/$defs/{name}") })
        }
    }
}

/// The schema of a struct with these fields, each with its comment.
fn of_fields(body: &str, field: &str, named: &mut BTreeSet<String>) -> Value {
    let field = Regex::new(&format!(r"(?m)((?:^ *(?:///|#\[)[^\n]*\n)+)^ *{field}(\w+): ([^\n]+),$")).unwrap();
    let mut properties = serde_json::Map::new();
    for it in field.captures_iter(body) {
        assert!(!it[1].contains("skip") && !it[1].contains("rename"), "{}: another form than its field", &it[2]);
        let mut schema = of_type(&it[3], named);
        schema["description"] = comment(&it[1]).into();
        properties.insert(it[2].to_owned(), schema);
    }
    let required: Vec<_> = properties.keys().cloned().collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

fn of_definition(it: &Definition, named: &mut BTreeSet<String>) -> Value {
    let mut schema = if it.is_enum {
        let unit = Regex::new(r"(?m)^    (\w+),$").unwrap();
        let names: Vec<_> = unit.captures_iter(&it.body).map(|name| cased(&name[1], &it.case)).collect();
        let with_fields = Regex::new(r"(?ms)^    (\w+) \{\n(.*?)^    \},$").unwrap();
        let mut forms = vec![json!({ "enum": names })];
        for form in with_fields.captures_iter(&it.body) {
            let (name, fields) = (cased(&form[1], &it.case), of_fields(&form[2], "", named));
            let properties = json!({ name.clone(): fields });
            forms.push(json!({
                "type": "object", "properties": properties, "required": [name], "additionalProperties": false
            }));
        }
        if forms.len() == 1 { forms.remove(0) } else { json!({ "anyOf": forms }) }
    } else {
        of_fields(&it.body, "pub ", named)
    };
    schema["description"] = it.description.clone().into();
    schema
}

fn generated() -> String {
    let definitions = definitions();
    let mut named = BTreeSet::new();
    let mut whole = of_definition(&definitions["Status"], &mut named);
    let mut defs = serde_json::Map::new();
    while let Some(name) = named.pop_first() {
        if !defs.contains_key(&name) {
            let definition = definitions.get(&name).unwrap_or_else(|| panic!("{name} is in none of {SOURCES:?}"));
            defs.insert(name, of_definition(definition, &mut named));
        }
    }
    whole["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    whole["title"] = "rustbalance status --json".into();
    whole["$defs"] = defs.into();
    serde_json::to_string_pretty(&whole).unwrap() + "\n"
}

#[test]
fn the_schema_is_that_of_the_types() {
    if std::env::var_os("RUSTBALANCE_WRITE_DOCS").is_some() {
        fs::write(root().join(FILE), generated()).unwrap();
    }
    let known = fs::read_to_string(root().join(FILE)).unwrap();
    let how = "write it with `RUSTBALANCE_WRITE_DOCS=1 cargo test --workspace --test status_schema`";
    assert!(known == generated(), "{FILE} is out of date: {how}");
}

#[test]
fn each_part_of_the_schema_is_explained_and_an_empty_status_does_not_fit() {
    assert!(schema::misfits(&json!({})).len() > 20);
    let whole = schema::status_schema();
    let parts = whole["$defs"].as_object().unwrap().iter().map(|(name, part)| (name.as_str(), part));
    for (name, part) in parts.chain([("Status", &whole)]) {
        let explained = |part: &Value| part["description"].as_str().is_some_and(|text| text.len() > 5);
        assert!(explained(part), "{name}");
        for (field, part) in part["properties"].as_object().into_iter().flatten() {
            assert!(explained(part), "{name}.{field}");
        }
    }
    for name in ["MemberStatus", "Problem", "ProblemKind", "Isolated", "Condition", "Role", "LinkStatus"] {
        assert!(whole["$defs"].get(name).is_some(), "{name} is missing");
    }
}
