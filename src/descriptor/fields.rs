//! One JSON object of a descriptor, taken apart key by key.

use serde_json::{Map, Value};

use super::error::{DescriptorError, quote};

/// The fields of one object that have not been taken yet.
pub(super) struct Fields {
    /// Where the object stands in the file, as `layers[3].`; empty for the whole.
    place: String,
    map: Map<String, Value>,
}

impl Fields {
    pub(super) fn of_image(value: Value) -> Result<Self, DescriptorError> {
        match value {
            Value::Object(map) => Ok(Self {
                place: String::new(),
                map,
            }),
            other => Err(DescriptorError::NotAnObject {
                found: kind(&other),
            }),
        }
    }

    /// Those of an object within the file; `place` names it, as `layers[3]`.
    pub(super) fn of_part(place: String, value: Value) -> Result<Self, DescriptorError> {
        match value {
            Value::Object(map) => Ok(Self {
                place: format!("{place}."),
                map,
            }),
            other => Err(DescriptorError::Field {
                field: place,
                reason: format!("expected an object, found {}", kind(&other)),
            }),
        }
    }

    /// Makes an error about one of these fields.
    pub(super) fn error(&self, key: &str, reason: impl Into<String>) -> DescriptorError {
        DescriptorError::Field {
            field: format!("{}{key}", self.place),
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

    /// Takes an object.
    pub(super) fn object(&mut self, key: &str) -> Result<Option<Self>, DescriptorError> {
        match self.take(key)? {
            None | Some(Value::Null) => Ok(None),
            Some(value) => Self::of_part(format!("{}{key}", self.place), value).map(Some),
        }
    }

    /// Takes a number of bytes.
    pub(super) fn size(&mut self, key: &str) -> Result<Option<u64>, DescriptorError> {
        match self.take(key)? {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(size) => Ok(Some(size)),
                None => Err(self.error(key, "expected a number of bytes")),
            },
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
