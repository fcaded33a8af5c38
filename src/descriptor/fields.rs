//! One JSON object of a descriptor, taken apart key by key.

use serde_json::{Map, Value};

use super::error::{DescriptorError, quote};

/// The fields of the image or of one layer that have not been taken yet.
pub(super) struct Fields {
    /// The layer's index, or none for the image itself.
    layer: Option<usize>,
    map: Map<String, Value>,
}

impl Fields {
    pub(super) fn of_image(value: Value) -> Result<Self, DescriptorError> {
        match value {
            Value::Object(map) => Ok(Self { layer: None, map }),
            other => Err(DescriptorError::NotAnObject {
                found: kind(&other),
            }),
        }
    }

    pub(super) fn of_layer(index: usize, value: Value) -> Result<Self, DescriptorError> {
        match value {
            Value::Object(map) => Ok(Self {
                layer: Some(index),
                map,
            }),
            other => Err(DescriptorError::Field {
                field: format!("layers[{index}]"),
                reason: format!("expected an object, found {}", kind(&other)),
            }),
        }
    }

    /// Makes an error about one of these fields.
    pub(super) fn error(&self, key: &str, reason: impl Into<String>) -> DescriptorError {
        DescriptorError::Field {
            field: match self.layer {
                Some(index) => format!("layers[{index}].{key}"),
                None => key.to_owned(),
            },
            reason: reason.into(),
        }
    }

    /// Takes a text; `null` is the same as no such key.
    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>, DescriptorError> {
        match self.take(key)? {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_kind(key, "a string", &other)),
        }
    }

    /// Takes a list; `null` is the empty list, since that is how Go writes one never filled.
    pub(super) fn array(&mut self, key: &str) -> Result<Option<Vec<Value>>, DescriptorError> {
        match self.take(key)? {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(Vec::new())),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(self.wrong_kind(key, "an array", &other)),
        }
    }

    /// Returns the fields that were not taken.
    pub(super) fn into_rest(self) -> Map<String, Value> {
        self.map
    }

    fn take(&mut self, key: &str) -> Result<Option<Value>, DescriptorError> {
        let mut spellings = self.map.keys().filter(|k| k.eq_ignore_ascii_case(key));
        let Some(spelling) = spellings.next().cloned() else {
            return Ok(None);
        };
        if let Some(second) = spellings.next() {
            let reason = format!("given as both {} and {}", quote(&spelling), quote(second));
            return Err(self.error(key, reason));
        }
        Ok(self.map.remove(&spelling))
    }

    fn wrong_kind(&self, key: &str, expected: &str, found: &Value) -> DescriptorError {
        self.error(key, format!("expected {expected}, found {}", kind(found)))
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
