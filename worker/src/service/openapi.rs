//! What `/openapi.json` says: the table of addresses, and what a job may say.

use serde_json::{Map, Value, json};

use super::{
    record::STATUSES,
    routes::{Methods, Operation, ROUTES, Route},
};
use crate::job;

/// The description of this server (OpenAPI 3.1).
pub(super) fn description(has_key: bool) -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        paths.insert(route.path(), path(route));
    }
    let mut whole = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "brightrun serve",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Jobs over HTTP on one machine: a superset of the API of RunPod's endpoints.",
        },
        "servers": [
            { "url": "/" },
            { "url": "/{endpoint}", "variables": { "endpoint": { "default": "local" } } },
            { "url": "/v2/{endpoint}", "variables": { "endpoint": { "default": "local" } } },
        ],
        "paths": paths,
        "components": { "schemas": schemas() },
    });
    if has_key {
        whole["components"]["securitySchemes"] = json!({ "key": { "type": "http", "scheme": "bearer" } });
        whole["security"] = json!([{ "key": [] }]);
    }
    whole
}

fn path(route: &Route) -> Value {
    let mut item = Map::new();
    let methods: &[&str] = match route.methods {
        Methods::Get => &["get"],
        Methods::Post => &["post"],
        Methods::Both => &["get", "post"],
    };
    for method in methods {
        item.insert((*method).to_owned(), operation(route, method));
    }
    Value::Object(item)
}

fn operation(route: &Route, method: &str) -> Value {
    let answer = match route.answers {
        "" => json!({ "description": "As Prometheus reads it.", "content": { "text/plain": {} } }),
        "Description" => json!({ "description": "OpenAPI 3.1.", "content": { "application/json": {} } }),
        schema => json!({ "description": route.summary, "content": content(schema) }),
    };
    let mut operation = json!({
        "operationId": format!("{method}-{}", route.name.trim_end_matches(".json")),
        "summary": route.summary,
        "parameters": route.parameters(),
        "responses": {
            "200": answer,
            "default": { "description": "What is wrong, and what to do.", "content": content("Error") },
        },
    });
    if matches!(route.operation, Operation::Run | Operation::RunSync) {
        operation["requestBody"] = json!({ "required": true, "content": content("Request") });
    }
    operation
}

fn content(schema: &str) -> Value {
    json!({ "application/json": { "schema": { "$ref": format!("#/components/schemas/{schema}") } } })
}

fn schemas() -> Value {
    let statuses = STATUSES.map(|status| status.name());
    let count = json!({ "type": "integer", "minimum": 0 });
    let counts = |names: &[&str]| {
        let properties: Map<String, Value> = names.iter().map(|name| ((*name).to_owned(), count.clone())).collect();
        json!({ "type": "object", "properties": properties })
    };
    json!({
        "Request": {
            "type": "object",
            "required": ["input"],
            "properties": {
                "input": { "$ref": "#/components/schemas/Input" },
                "webhook": { "type": "string", "description": "A link that is told of the job's end." },
                "policy": {
                    "type": "object",
                    "properties": {
                        "executionTimeout": {
                            "type": "integer", "description": "Milliseconds that the job may run, from 5000 to 604800000.",
                        },
                        "ttl": {
                            "type": "integer",
                            "description": "Milliseconds from submission after which the job is deleted unless it is over, from 10000 to 604800000.",
                        },
                    },
                },
                "s3Config": { "type": "object", "description": "The store where results go." },
            },
        },
        "Input": {
            "type": "object",
            "required": ["dataset_url"],
            "properties": {
                "job_id": { "type": "string", "description": "Name of the job's folder." },
                "dataset_url": { "type": "string" },
                "validation_url": { "type": "string" },
                "hyperparameters": job::parameter_schema(),
                "gpu_config": { "type": "object" },
                "upload_urls": { "type": "object", "additionalProperties": { "type": "string" } },
                "callback_url": { "type": "string" },
            },
        },
        "Job": {
            "type": "object",
            "required": ["id", "status"],
            "properties": {
                "id": { "type": "string" },
                "status": { "enum": statuses },
                "delayTime": { "type": "integer", "description": "Milliseconds in the queue." },
                "executionTime": { "type": "integer", "description": "Milliseconds at work." },
                "output": { "description": "How far it is, or what came out of it." },
                "error": { "type": "string" },
                "retries": count,
                "workerId": { "type": "string" },
            },
        },
        "Stream": {
            "type": "object",
            "required": ["status", "stream"],
            "properties": {
                "status": { "enum": statuses },
                "stream": { "type": "array", "items": { "type": "object", "required": ["output"], "properties": { "output": {} } } },
            },
        },
        "Health": {
            "type": "object",
            "properties": {
                "jobs": counts(&["completed", "failed", "inProgress", "inQueue", "retried"]),
                "workers": counts(&["idle", "initializing", "ready", "running", "throttled", "unhealthy"]),
            },
        },
        "Purged": { "type": "object", "properties": { "removed": count, "status": { "type": "string" } } },
        "Requests": {
            "type": "object",
            "properties": { "requests": { "type": "array", "items": { "$ref": "#/components/schemas/Job" } } },
        },
        "Error": { "type": "object", "required": ["error"], "properties": { "error": { "type": "string" } } },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` of a value.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_address_is_described_and_every_reference_leads_somewhere() {
        let description = description(true);
        for route in ROUTES {
            assert!(description["paths"][route.path()].is_object(), "{}", route.name);
        }
        assert_eq!(description["paths"].as_object().unwrap().len(), ROUTES.len());
        let mut found = Vec::new();
        references(&description, &mut found);
        assert!(found.len() > ROUTES.len());
        for reference in found {
            assert!(description.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference}");
        }
        let parameters = &description["components"]["schemas"]["Input"]["properties"]["hyperparameters"]["properties"];
        assert!(parameters["lora_rank"]["description"].is_string());
    }

    #[test]
    fn a_key_is_described_where_one_is_wanted() {
        assert!(description(true)["security"].is_array());
        assert!(description(false).get("security").is_none());
    }
}
