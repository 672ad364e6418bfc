//! How hashes, ids and scripts stand in the JSON that the pool keeps for itself: as hex. Named in
//! `#[serde(with)]` of `store`'s records.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

fn decode<T: TryFrom<Vec<u8>>, E: Error>(text: &str) -> Result<T, E> {
    let bytes = hex::decode(text).map_err(E::custom)?;
    let length = bytes.len();
    T::try_from(bytes)
        .map_err(|_| E::custom(format_args!("{length} bytes are too many or too few")))
}

pub(crate) fn serialize<S: Serializer>(bytes: impl AsRef<[u8]>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&hex::encode(bytes))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>, T: TryFrom<Vec<u8>>>(
    from: D,
) -> Result<T, D::Error> {
    decode(&String::deserialize(from)?)
}

/// A list of hashes.
pub(crate) mod list {
    use super::{Deserialize, Deserializer, Serializer, decode};

    pub(crate) fn serialize<S: Serializer>(hashes: &[[u8; 32]], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(hashes.iter().map(hex::encode))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<[u8; 32]>, D::Error> {
        Vec::<String>::deserialize(from)?.iter().map(|text| decode(text)).collect()
    }
}

/// The id of a declared job.
pub(crate) mod id {
    use proto::mining::DeclaredId;

    use super::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(id: &DeclaredId, to: S) -> Result<S::Ok, S::Error> {
        super::serialize(id.0, to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<DeclaredId, D::Error> {
        super::deserialize(from).map(DeclaredId)
    }
}

/// The id of a declared job, or none.
pub(crate) mod some_id {
    use proto::mining::DeclaredId;
    use serde::Serialize;

    use super::{Deserialize, Deserializer, Serializer, decode};

    pub(crate) fn serialize<S: Serializer>(
        id: &Option<DeclaredId>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        id.map(|id| hex::encode(id.0)).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<DeclaredId>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| decode(&text).map(DeclaredId)).transpose()
    }
}
