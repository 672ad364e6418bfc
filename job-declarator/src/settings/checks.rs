//! Values that types and bounds cannot judge and that more than one program has: addresses, texts for
//! the coinbase, filters, numbers that must fit each other. Each refusal names the key and the value.

use std::path::Path;

use bitcoin::address::NetworkUnchecked;
use bitcoin::{Address, Network, ScriptBuf};
use tracing_subscriber::EnvFilter;

use super::ConfigError;
use crate::limits::TAG_MAX;

/// A text for the coinbase.
///
/// # Errors
/// `Value`.
pub fn check_tag(key: &str, tag: &str) -> Result<(), ConfigError> {
    if tag.len() > TAG_MAX || !tag.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        let why = format!("{tag:?} is not printable ASCII of at most {TAG_MAX} characters");
        return Err(ConfigError::value(key, why));
    }
    Ok(())
}

/// A folder that has a name.
///
/// # Errors
/// `Value`.
pub fn check_folder(key: &str, folder: &Path) -> Result<(), ConfigError> {
    if folder.as_os_str().is_empty() {
        return Err(ConfigError::value(key, "\"\" names no folder"));
    }
    Ok(())
}

/// That `{key}_per_address` is no more than `key`.
///
/// # Errors
/// `Value`.
pub fn check_of_one(key: &str, of_one: u32, of_all: u32) -> Result<(), ConfigError> {
    if of_one > of_all {
        let why = format!("{of_one} is above {key}, which is {of_all}");
        return Err(ConfigError::value(format!("{key}_per_address"), why));
    }
    Ok(())
}

/// A `log.filter`; `sample` is one that would do.
///
/// # Errors
/// `Value`.
pub fn check_filter(filter: &str, sample: &str) -> Result<(), ConfigError> {
    EnvFilter::try_new(filter).map(drop).map_err(|error| {
        let allowed = format!("it may be such as \"info\" or {sample:?}");
        ConfigError::value("log.filter", format!("{filter:?}: {error}; {allowed}"))
    })
}

/// Whether a node that is on `found` is one to mine with.
///
/// # Errors
/// `NodeNetwork`.
pub fn check_network(node: &str, found: Network, expected: Network) -> Result<(), ConfigError> {
    if found == expected {
        return Ok(());
    }
    Err(ConfigError::NodeNetwork { node: node.to_owned(), found, expected })
}

/// How addresses of bech32 start, in lower case.
const STARTS: [&str; 3] = ["bc1", "tb1", "bcrt1"];
/// How those of base58 do. A word that starts so is only taken for one when it is as long.
const STARTS_BASE58: [char; 5] = ['1', '3', 'm', 'n', '2'];
/// The shortest address of base58 has 26 characters; one may have been lost.
const BASE58_LEN_MIN: usize = 25;

/// Why a text is no address. The library's own words are of encodings, and of base58 also where it is none.
fn why_no_address(text: &str) -> &'static str {
    let lower = text.to_ascii_lowercase();
    let is_bech32 = STARTS.iter().any(|start| lower.starts_with(start));
    let of_one_case = [&lower, &text.to_ascii_uppercase()].iter().any(|same| same.as_str() == text);
    if is_bech32 && !of_one_case && lower.parse::<Address<NetworkUnchecked>>().is_ok() {
        return "it has small and capital letters: write all of them small";
    }
    if is_bech32 || (text.starts_with(STARTS_BASE58) && text.len() >= BASE58_LEN_MIN) {
        return "a character of it is wrong, missing or too many: its checksum does not fit";
    }
    "one starts with bc1, 1 or 3, and on test networks with tb1, bcrt1, m, n or 2"
}

/// What pays to an address. Without a network any will do: to see that it is an address at all.
///
/// # Errors
/// `Value` or `WrongNetwork`.
pub fn address_script(
    key: &str,
    text: &str,
    network: Option<Network>,
) -> Result<ScriptBuf, ConfigError> {
    let address: Address<NetworkUnchecked> = text.parse().map_err(|_| {
        let why = why_no_address(text);
        ConfigError::value(key, format!("{text} is not a Bitcoin address: {why}"))
    })?;
    if let Some(network) = network.filter(|network| !address.is_valid_for_network(*network)) {
        return Err(ConfigError::WrongNetwork {
            key: key.to_owned(),
            address: text.to_owned(),
            of: networks_of(&address),
            network,
        });
    }
    Ok(address.assume_checked().script_pubkey())
}

fn networks_of(address: &Address<NetworkUnchecked>) -> String {
    let all =
        [Network::Bitcoin, Network::Testnet, Network::Testnet4, Network::Signet, Network::Regtest];
    let valid = all.into_iter().filter(|network| address.is_valid_for_network(*network));
    valid.map(|network| network.to_string()).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_is_told_by_what_it_most_likely_is() {
        let good = "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq";
        assert!(address_script("a", good, None).is_ok());
        assert!(address_script("a", &good.to_ascii_uppercase(), None).is_ok());
        let cases = [
            (good.replace("rrr7", "RRR7"), "small and capital letters"),
            (good.replace("rrr7", "RRR8"), "its checksum does not fit"),
            (good.replace("5mdq", "5md"), "its checksum does not fit"),
            ("1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN3".to_owned(), "its checksum does not fit"),
            ("miner".to_owned(), "one starts with"),
            ("n".repeat(BASE58_LEN_MIN - 1), "one starts with"),
            ("n".repeat(BASE58_LEN_MIN), "its checksum does not fit"),
            ("alice.bitaxe".to_owned(), "one starts with"),
        ];
        for (text, why) in cases {
            let said = address_script("a", &text, None).unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
        }
    }
}
