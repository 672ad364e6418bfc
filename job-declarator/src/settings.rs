//! How a program of this house is configured: sections whose doc comments are the manual, a file, the
//! environment over it, and refusals that name what was meant. Used by `config.rs` here and in the pool,
//! which say what there is to set and check what types and bounds cannot.
//!
//! Must never let a value through that it did not understand: unknown keys and variables, wrong types
//! and numbers out of bounds are refused by name. Must never print a secret.

mod checks;
mod node;
mod secret;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
pub use toml::Table;
use toml::Value;

pub use checks::{
    address_script, check_filter, check_folder, check_network, check_of_one, check_tag,
};
pub use node::{NetworkName, NodeAccess, NodeKind, NodeLogin, check_node_url};
pub use node::{cookie_places, find_cookie};
pub use secret::Secret;

/// Declares a section once: from it come the struct, its defaults, the bounds that are checked and the
/// text of the example, so that they cannot tell different stories.
#[macro_export]
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        pub struct $Section:ident in $name:literal {
            $(
                $(#[doc = $doc:literal])+
                pub $field:ident: $type:ty $([$low:literal ..= $high:literal])? = $default:expr,
            )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, ::serde::Deserialize, ::serde::Serialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $Section {
            $($(#[doc = $doc])+ pub $field: $type,)+
        }

        impl Default for $Section {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $Section {
            /// What the example and the checks know of it.
            pub const MANUAL: $crate::settings::Section = $crate::settings::Section {
                name: $name,
                about: &[$($about),+],
                fields: &[$($crate::settings::Field {
                    key: stringify!($field),
                    doc: &[$($doc),+],
                    bounds: &[$(($low, $high))?],
                    is_secret: matches!(stringify!($type).as_bytes(), b"Secret"),
                }),+],
                defaults: || $crate::settings::table_of(&Self::default()),
                listed: None,
            };
        }
    };
}

/// What a program can be told: its sections, and how the environment names them.
pub struct Manual {
    /// First lines of the example, without the `#`.
    pub head: &'static [&'static str],
    /// Variables are `PREFIX__SECTION__KEY`.
    pub prefix: &'static str,
    /// In the order of the example.
    pub sections: &'static [Section],
}

/// A section as the manual and the checks see it.
pub struct Section {
    /// As it stands in brackets.
    pub name: &'static str,
    /// Its doc comment, line by line.
    pub about: &'static [&'static str],
    /// Its keys.
    pub fields: &'static [Field],
    /// All of them with the values that count when nothing is set.
    pub defaults: fn() -> Table,
    /// `Some`: stands in the file as often as one likes up to so many times, as `[[name]]`, in order.
    pub listed: Option<usize>,
}

/// One key: its doc comment, line by line, and for a number its bounds (none or one pair, inclusive).
pub struct Field {
    /// As it stands before the `=`.
    pub key: &'static str,
    /// Line by line.
    pub doc: &'static [&'static str],
    /// Smallest and largest.
    pub bounds: &'static [(i64, i64)],
    /// Its value is never shown.
    pub is_secret: bool,
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why a configuration is refused. Never carries a secret.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A file named by the configuration, or itself, cannot be read.
    #[error("cannot read {}: {why}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// Not TOML. The line's text is left out: it may hold a password.
    #[error("{}, line {line}: {why}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The parser's words.
        why: String,
    },
    /// A key that does not exist.
    #[error("unknown key {key} in {}{}", path.display(), hint)]
    UnknownKey {
        /// Dotted.
        key: String,
        /// The file.
        path: PathBuf,
        /// What was meant, as far as can be guessed: the key that is spelt most like it, or where it belongs.
        hint: String,
    },
    /// A variable that starts with our prefix and means nothing to us.
    #[error("unknown environment variable {name}{}", did_you_mean(nearest))]
    UnknownVariable {
        /// As found.
        name: String,
        /// The variable that is spelt most like it.
        nearest: Option<String>,
    },
    /// A value of the wrong type or not one of those allowed.
    #[error("{key}: {why}")]
    Value {
        /// Dotted key, or the variable's name.
        key: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// A number beyond its bounds.
    #[error("{key} is {value}; it must be from {low} to {high}")]
    OutOfBounds {
        /// Dotted.
        key: String,
        /// As given.
        value: i64,
        /// Smallest allowed.
        low: i64,
        /// Largest allowed.
        high: i64,
    },
    /// Mining for real needs to know whom to pay.
    #[error("{key} is missing: a Bitcoin address on network {}", network.to_core_arg())]
    NoPayoutAddress {
        /// Dotted.
        key: &'static str,
        /// The node's.
        network: bitcoin::Network,
    },
    /// The node is on another network than the configuration says.
    #[error("the node {node} is on {}, the configuration says {} (node.network)", found.to_core_arg(), expected.to_core_arg())]
    NodeNetwork {
        /// The node's name.
        node: String,
        /// Where it is.
        found: bitcoin::Network,
        /// Where it should be.
        expected: bitcoin::Network,
    },
    /// An address of another network than the node's.
    #[error("{key} {address} is for network {of}, but the node is on {}", network.to_core_arg())]
    WrongNetwork {
        /// Dotted.
        key: String,
        /// As configured.
        address: String,
        /// Where it would be valid.
        of: String,
        /// The node's.
        network: bitcoin::Network,
    },
    /// No way to log in is set and Bitcoin Core's cookie is nowhere. Core removes it when it stops, so
    /// this may pass by itself.
    #[error(
        "Bitcoin Core's cookie is not found: is it running on {}, and may this user read its folder? If \
         the cookie is elsewhere set node.cookie_file; looked for {}",
        network.to_core_arg(), listing(tried)
    )]
    NoCookie {
        /// That a node was looked for on.
        network: bitcoin::Network,
        /// Where.
        tried: Vec<PathBuf>,
    },
}

impl ConfigError {
    /// A value that was understood and cannot be used.
    pub fn value(key: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Value { key: key.into(), why: why.into() }
    }

    /// Whether the same configuration may do later: nobody need change it.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::NoCookie { .. })
    }
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

fn listing(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// A section's or a whole configuration's values.
///
/// # Panics
/// If a field is no plain value, which the first test that prints an example would show.
pub fn table_of(values: &impl Serialize) -> Table {
    Table::try_from(values).expect("every field is a table of plain values")
}

/// What is in force, as TOML, secrets masked.
///
/// # Panics
/// As `table_of`.
pub fn shown(config: &impl Serialize) -> String {
    toml::to_string(config).expect("every field is a table of plain values")
}

/// `~/` at the front is the user's home, as a shell would have it.
#[must_use]
pub fn at_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), std::env::var_os("HOME")) {
        (Ok(rest), Some(home)) => Path::new(&home).join(rest),
        _ => path.to_owned(),
    }
}

/// The secret that a file's first line is.
///
/// # Errors
/// `Unreadable`, also if there is none.
pub fn first_line(path: &Path) -> Result<Secret, ConfigError> {
    let unreadable = |why: String| ConfigError::Unreadable { path: path.to_owned(), why };
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(Secret::new(line)),
        _ => Err(unreadable("its first line is empty".into())),
    }
}

impl Section {
    /// The same, for as many as there are in the file.
    #[must_use]
    pub const fn listed(mut self, at_most: usize) -> Self {
        self.listed = Some(at_most);
        self
    }

    /// How a refusal names one of its keys; `at` counts the entries of a list from 0.
    fn key(&self, at: usize, key: &str) -> String {
        match self.listed {
            None => format!("{}.{key}", self.name),
            Some(_) => entry_key(self.name, at, key),
        }
    }

    /// What a file or the environment set of it: one table, or one for each entry.
    fn tables<'t>(&self, table: &'t Table) -> Vec<&'t Table> {
        match table.get(self.name) {
            Some(Value::Table(values)) if self.listed.is_none() => vec![values],
            Some(Value::Array(entries)) if self.listed.is_some() => {
                entries.iter().filter_map(Value::as_table).collect()
            }
            _ => Vec::new(),
        }
    }

    fn whole(&self, values: Table) -> Value {
        match self.listed {
            None => Value::Table(values),
            Some(_) => Value::Array(vec![Value::Table(values)]),
        }
    }

    fn unset(&self) -> Value {
        match self.listed {
            None => Value::Table((self.defaults)()),
            Some(_) => Value::Array(Vec::new()),
        }
    }
}

/// How a refusal names a key of an entry, which a file's reader counts from one.
#[must_use]
pub fn entry_key(section: &str, at: usize, key: &str) -> String {
    format!("{key} of [[{section}]] number {}", at + 1)
}

impl Manual {
    /// The defaults, overridden by the file if one is named, overridden by `PREFIX__SECTION__KEY` from
    /// `env` (usually `std::env::vars_os()`). The program's own checks are still to come.
    ///
    /// # Errors
    /// Anything not understood; see `ConfigError`.
    pub fn load<C, K, V>(
        &self,
        path: Option<&Path>,
        env: impl IntoIterator<Item = (K, V)>,
    ) -> Result<C, ConfigError>
    where
        C: DeserializeOwned,
        K: Into<OsString>,
        V: Into<OsString>,
    {
        let mut table = self.defaults();
        if let Some(path) = path {
            self.overlay(&mut table, self.read_file::<C>(path)?);
        }
        let variables = env.into_iter().map(|(name, value)| (name.into(), value.into()));
        let mut variables: Vec<(OsString, OsString)> = variables.collect();
        // The first entry of a list before the second, in whatever order the system has them.
        variables.sort_by_key(|(name, _)| self.slot(&name.to_string_lossy()).map(|slot| slot.at));
        for (name, value) in variables {
            self.apply_variable::<C>(&mut table, &name, &value)?;
        }
        self.check_bounds(&table)?;
        from_table(table, "configuration")
    }

    /// Every key with its doc comment and its default, as TOML that loads. A list's are commented out:
    /// by default it is empty.
    #[must_use]
    pub fn example(&self) -> String {
        let mut text = String::new();
        for line in self.head {
            text.push_str(&format!("# {line}\n"));
        }
        for section in self.sections {
            text.push('\n');
            push_comment(&mut text, section.about);
            let (open, close, mark) = match section.listed {
                None => ("[", "]", ""),
                Some(_) => ("[[", "]]", "#"),
            };
            text.push_str(&format!("{mark}{open}{}{close}\n", section.name));
            let defaults = (section.defaults)();
            for field in section.fields {
                push_comment(&mut text, field.doc);
                for (low, high) in field.bounds {
                    text.push_str(&format!("# From {low} to {high}.\n"));
                }
                text.push_str(&format!("{mark}{} = {}\n", field.key, defaults[field.key]));
            }
        }
        text
    }

    fn defaults(&self) -> Table {
        self.sections.iter().map(|section| (section.name.to_owned(), section.unset())).collect()
    }

    /// Reads and checks the file alone, so that what is wrong in it is told with its line.
    fn read_file<C: DeserializeOwned>(&self, path: &Path) -> Result<Table, ConfigError> {
        let unreadable = |why: String| ConfigError::Unreadable { path: path.to_owned(), why };
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
        let syntax = |error: &toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            line: line_of(&text, error.span().map_or(0, |span| span.start)),
            why: error.message().trim().replace('\n', ", "),
        };
        let table: Table = toml::from_str(&text).map_err(|error| syntax(&error))?;
        if let Some(key) = self.unknown_key(&table) {
            let hint = match self.unopened(&key, &table) {
                Some(hint) => hint,
                None => did_you_mean(&nearest(&key, self.keys())),
            };
            return Err(ConfigError::UnknownKey { key, path: path.to_owned(), hint });
        }
        self.check_lists(&table)?;
        // Bounds before types: "70000 must be from 0 to 65535" says more than "invalid value".
        self.check_bounds(&table)?;
        toml::from_str::<C>(&text).map_err(|error| {
            match (syntax(&error), self.wrong_value::<C>(&table)) {
                (ConfigError::Syntax { path, line, .. }, Some((key, why))) => {
                    ConfigError::Syntax { path, line, why: format!("{key}: {why}") }
                }
                (other, _) => other,
            }
        })?;
        Ok(table)
    }

    /// The first key whose value alone is not taken: the key, and the value with what is wrong with it
    /// and what would not be. A secret is not repeated.
    fn wrong_value<C: DeserializeOwned>(&self, table: &Table) -> Option<(String, String)> {
        self.set(table).find_map(|(section, at, field, value)| {
            let mut values = (section.defaults)();
            let default = std::mem::replace(&mut values[field.key], value.clone());
            let mut alone = self.defaults();
            alone.insert(section.name.to_owned(), section.whole(values));
            let error = alone.try_into::<C>().err()?;
            let message = error.message().trim().replace('\n', ", ");
            let why = match field.is_secret {
                true => message,
                false => format!("{value}: {message}; it may be such as {default}"),
            };
            Some((section.key(at, field.key), why))
        })
    }

    /// What is set, key by key: its section, which entry of it, what it is and the value.
    fn set<'t>(
        &'t self,
        table: &'t Table,
    ) -> impl Iterator<Item = (&'t Section, usize, &'t Field, &'t Value)> {
        self.sections.iter().flat_map(|section| {
            section.tables(table).into_iter().enumerate().flat_map(move |(at, values)| {
                let of = move |field: &'t Field| Some((section, at, field, values.get(field.key)?));
                section.fields.iter().filter_map(of)
            })
        })
    }

    /// All keys, dotted.
    fn keys(&self) -> impl Iterator<Item = String> {
        self.sections.iter().flat_map(|section| {
            section.fields.iter().map(|field| format!("{}.{}", section.name, field.key))
        })
    }

    /// All variables; of a list, those of the first entry.
    fn variables(&self) -> impl Iterator<Item = String> {
        self.sections.iter().flat_map(move |section| {
            let entry = if section.listed.is_some() { "__0" } else { "" };
            section.fields.iter().map(move |field| {
                let rest = format!("{}{entry}__{}", section.name, field.key);
                format!("{}__{}", self.prefix, rest.to_uppercase())
            })
        })
    }

    /// What a variable sets, if it is one of ours.
    fn slot(&self, name: &str) -> Option<Slot<'_>> {
        let rest = name.strip_prefix(self.prefix)?.strip_prefix("__")?;
        self.sections.iter().find_map(|section| {
            let rest = rest.strip_prefix(&section.name.to_uppercase())?.strip_prefix("__")?;
            let (at, rest) = match section.listed {
                None => (0, rest),
                Some(_) => {
                    let (at, rest) = rest.split_once("__")?;
                    (at.parse().ok()?, rest)
                }
            };
            let field = section.fields.iter().find(|field| field.key.to_uppercase() == rest)?;
            Some(Slot { section, at, key: field.key })
        })
    }

    fn unknown_key(&self, table: &Table) -> Option<String> {
        for name in table.keys() {
            let Some(section) = self.sections.iter().find(|section| section.name == name) else {
                return Some(name.clone());
            };
            let is_unknown = |key: &&String| section.fields.iter().all(|field| field.key != **key);
            let mut keys = section.tables(table).into_iter().flat_map(Table::keys);
            if let Some(key) = keys.find(is_unknown) {
                return Some(format!("{name}.{key}"));
            }
        }
        None
    }

    /// For a key that is one of a list of which the file has none: in the example its head is a comment.
    fn unopened(&self, key: &str, table: &Table) -> Option<String> {
        let (_, key) = key.split_once('.')?;
        let is_it = |section: &&Section| {
            section.listed.is_some()
                && !table.contains_key(section.name)
                && section.fields.iter().any(|field| field.key == key)
        };
        let section = self.sections.iter().find(is_it)?;
        let name = section.name;
        Some(format!("; {key} belongs into [[{name}]]: is its line still commented out?"))
    }

    /// What stands once stands once: serde would take a list for a section, its values in order. Lists
    /// are not too long.
    fn check_lists(&self, table: &Table) -> Result<(), ConfigError> {
        for section in self.sections {
            let name = section.name;
            match (table.get(name), section.listed) {
                (Some(Value::Array(_)), None) => {
                    let why = format!("write [{name}] in single brackets, once");
                    return Err(ConfigError::value(format!("[[{name}]]"), why));
                }
                (Some(Value::Table(_)), Some(_)) => {
                    let why = format!("write [[{name}]] in two brackets, once for each");
                    return Err(ConfigError::value(format!("[{name}]"), why));
                }
                (Some(Value::Array(entries)), Some(at_most)) if entries.len() > at_most => {
                    let why = format!("{} are too many; at most {at_most}", entries.len());
                    return Err(ConfigError::value(format!("[[{name}]]"), why));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn check_bounds(&self, table: &Table) -> Result<(), ConfigError> {
        for (section, at, field, value) in self.set(table) {
            let Some(value) = value.as_integer() else { continue };
            for &(low, high) in field.bounds {
                if !(low..=high).contains(&value) {
                    let key = section.key(at, field.key);
                    return Err(ConfigError::OutOfBounds { key, value, low, high });
                }
            }
        }
        Ok(())
    }

    /// Sections of `above` over those of `below`, key by key. Entries of a list come whole.
    fn overlay(&self, below: &mut Table, above: Table) {
        for section in self.sections {
            let whole = |values: &Table| {
                let mut entry = (section.defaults)();
                entry.extend(values.clone());
                Value::Table(entry)
            };
            let set = section.tables(&above);
            match below.get_mut(section.name) {
                Some(Value::Table(old)) => old.extend(set.into_iter().flatten().map(owned)),
                Some(Value::Array(entries)) => entries.extend(set.into_iter().map(whole)),
                _ => {}
            }
        }
    }

    /// Sets one variable; leaves others than `PREFIX_*` alone. The type is that of the default.
    fn apply_variable<C: DeserializeOwned>(
        &self,
        table: &mut Table,
        name: &OsString,
        value: &OsString,
    ) -> Result<(), ConfigError> {
        let name = name.to_string_lossy();
        // Not settings: where our own tests find a database.
        let is_tests = name.starts_with(&format!("{}_TEST_", self.prefix));
        if !name.to_uppercase().starts_with(&format!("{}_", self.prefix)) || is_tests {
            return Ok(());
        }
        let Some(slot) = self.slot(&name) else {
            let nearest = nearest(&name, self.variables());
            return Err(ConfigError::UnknownVariable { name: name.into_owned(), nearest });
        };
        let refuse = |why: String| ConfigError::value(name.as_ref(), why);
        let value = value.to_str().ok_or_else(|| refuse("the value is not UTF-8".into()))?;
        let place = slot.of(table).map_err(refuse)?;
        *place = parsed(place, value).map_err(refuse)?;
        // The whole was right but for this value, so an error is about it.
        self.check_bounds(table)?;
        from_table::<C>(table.clone(), &name)
            .map(drop)
            .map_err(|error| self.wrong_value::<C>(table).map_or(error, |(_, why)| refuse(why)))
    }
}

/// Where a variable's value goes.
struct Slot<'m> {
    section: &'m Section,
    /// Entry of a list, from 0.
    at: usize,
    key: &'m str,
}

impl Slot<'_> {
    /// Makes the next entry of a list, never one beyond.
    fn of<'t>(&self, table: &'t mut Table) -> Result<&'t mut Value, String> {
        let values = &mut table[self.section.name];
        let Some(at_most) = self.section.listed else { return Ok(&mut values[self.key]) };
        let entries = values.as_array_mut().expect("defaults() makes an array of what is listed");
        if self.at >= at_most {
            return Err(format!("at most {at_most} are taken, counted from 0"));
        }
        if self.at > entries.len() {
            return Err(format!("there is no number {} before it", self.at - 1));
        }
        if self.at == entries.len() {
            entries.push(Value::Table((self.section.defaults)()));
        }
        Ok(&mut entries[self.at][self.key])
    }
}

/// A variable's text as a value of the same type as `like`.
fn parsed(like: &Value, text: &str) -> Result<Value, String> {
    if like.is_integer() {
        let number = text.trim().parse();
        return number.map(Value::Integer).map_err(|_| format!("{text:?} is not a whole number"));
    }
    if like.is_bool() {
        let is_so = text.trim().parse();
        return is_so
            .map(Value::Boolean)
            .map_err(|_| format!("{text:?} is neither true nor false"));
    }
    if like.is_array() {
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        return Ok(Value::Array(words.map(Value::from).collect()));
    }
    Ok(Value::String(text.to_owned()))
}

fn owned((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

fn push_comment(text: &mut String, lines: &[&str]) {
    for line in lines {
        // A doc comment's line keeps the blank after its slashes.
        text.push_str(&format!("#{line}\n"));
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// The name most like `wrong`; none if nothing is.
fn nearest(wrong: &str, names: impl Iterator<Item = String>) -> Option<String> {
    // A key without its section, or a section alone, is compared with that part of each name.
    let likeness = |name: &str| {
        let part = name.rsplit('.').next().filter(|_| !wrong.contains('.')).unwrap_or(name);
        strsim::jaro_winkler(wrong, part).max(strsim::jaro_winkler(wrong, name))
    };
    names
        .map(|name| (likeness(&name), name))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

fn from_table<C: DeserializeOwned>(table: Table, blame: &str) -> Result<C, ConfigError> {
    table.try_into().map_err(|error: toml::de::Error| {
        ConfigError::value(blame, error.message().trim().replace('\n', ", "))
    })
}
