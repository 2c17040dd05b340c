//! The JSON schema of a request's hyperparameters, for editors and for whoever checks before sending.

use serde_json::{Map, Value, json};

use super::{
    PRESETS,
    accepts::{Accepts, MAX_TARGETS, TARGET_SETS},
    items::ITEMS,
    table,
};

/// The schema of `input.hyperparameters` (JSON Schema 2020-12).
pub(crate) fn schema() -> Value {
    let presets: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
    let mut properties = Map::new();
    properties
        .insert("base_model".into(), json!({ "type": "string", "description": "Folder or name of the base model." }));
    properties.insert("preset".into(), json!({ "enum": presets, "description": "Values for what is not given." }));
    for item in ITEMS {
        for (index, name) in item.names.iter().enumerate() {
            let mut property = type_of(&item.accepts);
            let description = match index {
                0 => item.meaning.to_owned(),
                _ => format!("The same as {}.", item.names[0]),
            };
            property.insert("description".into(), description.into());
            if index == 0 && item.default.is_none() {
                property.insert("default".into(), table::default_value(item));
            }
            properties.insert((*name).to_owned(), Value::Object(property));
        }
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Hyperparameters of a brightrun job",
        "type": "object",
        "properties": properties,
    })
}

fn type_of(accepts: &Accepts) -> Map<String, Value> {
    let value = match accepts {
        Accepts::Number(least, most) => json!({ "type": "number", "minimum": least, "maximum": most }),
        Accepts::Integer(least, u64::MAX) => json!({ "type": "integer", "minimum": least }),
        Accepts::Integer(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
        Accepts::Flag => json!({ "type": "boolean" }),
        Accepts::OneOf(names) => json!({ "enum": names }),
        Accepts::Folder => json!({ "type": "string", "minLength": 1 }),
        Accepts::Targets => {
            let list =
                json!({ "type": "array", "items": { "type": "string" }, "minItems": 1, "maxItems": MAX_TARGETS });
            json!({ "anyOf": [{ "enum": TARGET_SETS }, list] })
        }
    };
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_has_every_name_with_bounds_and_default() {
        let schema = schema();
        let property = |name: &str| &schema["properties"][name];
        for name in ITEMS.iter().flat_map(|item| item.names) {
            assert!(property(name)["description"].is_string(), "{name}");
        }
        assert_eq!(property("batch_size")["maximum"], 4096);
        assert_eq!(property("learning_rate")["default"], 2e-4);
        assert_eq!(property("r")["description"], "The same as lora_rank.");
        assert!(property("max_steps").get("default").is_none());
        assert_eq!(property("preset")["enum"][0], "fast");
    }
}
