//! Chat templates of a model directory as GGUF metadata: one text, or several with names.

use serde_json::Value;

use crate::format::gguf::entry::Entry;

const KEY: &str = "tokenizer.chat_template";

/// tokenizer_config.json's `chat_template` (a text, or a list of `{"name", "template"}`), else chat_template.jinja.
pub(super) fn entries(config: &Value, jinja: Option<&str>) -> Vec<(String, Entry)> {
    let list = match &config["chat_template"] {
        Value::String(text) => return vec![(KEY.into(), Entry::Text(text.clone()))],
        Value::Array(list) => list,
        _ => return jinja.map(|text| (KEY.into(), Entry::Text(text.into()))).into_iter().collect(),
    };
    let (mut entries, mut names) = (Vec::new(), Vec::new());
    for choice in list {
        let (Some(name), Some(text)) = (choice["name"].as_str(), choice["template"].as_str()) else { continue };
        // llama.cpp's converter keeps letters and digits of a name.
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let text = Entry::Text(text.into());
        if name == "default" {
            entries.push((KEY.to_string(), text));
        } else if !name.is_empty() && !names.contains(&name) {
            entries.push((format!("{KEY}.{name}"), text));
            names.push(name);
        }
    }
    if !names.is_empty() {
        entries.push(("tokenizer.chat_templates".into(), Entry::Texts(names)));
    }
    entries
}
