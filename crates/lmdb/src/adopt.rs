//! Environments of either kind: heed's types differ by whether a reader belongs to its thread.

use std::ops::Deref;

use heed::{AnyTls, DatabaseOpener, Env, RoTxn, RwTxn, WithTls, WithoutTls};

/// An environment that a store can be made of: `Env<WithTls>`, which is heed's default, or `Env<WithoutTls>`.
pub trait Adopt: sealed::Sealed {}

impl Adopt for Env<WithTls> {}
impl Adopt for Env<WithoutTls> {}

pub(crate) mod sealed {
    use super::{AnyEnv, Env, WithTls, WithoutTls};

    pub trait Sealed {
        fn into_any(self) -> AnyEnv;
    }

    impl Sealed for Env<WithTls> {
        fn into_any(self) -> AnyEnv {
            AnyEnv::WithTls(self)
        }
    }

    impl Sealed for Env<WithoutTls> {
        fn into_any(self) -> AnyEnv {
            AnyEnv::WithoutTls(self)
        }
    }
}

/// An environment of either kind.
#[derive(Debug, Clone)]
pub enum AnyEnv {
    WithTls(Env<WithTls>),
    WithoutTls(Env<WithoutTls>),
}

/// Calls a method that both kinds have.
macro_rules! on_env {
    ($any:expr, $env:ident => $call:expr) => {
        match $any {
            $crate::adopt::AnyEnv::WithTls($env) => $call,
            $crate::adopt::AnyEnv::WithoutTls($env) => $call,
        }
    };
}
pub(crate) use on_env;

impl AnyEnv {
    pub(crate) fn has_tls(&self) -> bool {
        matches!(self, Self::WithTls(_))
    }

    pub(crate) fn read_txn(&self) -> heed::Result<ReadTxn<'_>> {
        Ok(match self {
            Self::WithTls(env) => ReadTxn::WithTls(env.read_txn()?),
            Self::WithoutTls(env) => ReadTxn::WithoutTls(env.read_txn()?),
        })
    }

    pub(crate) fn write_txn(&self) -> heed::Result<RwTxn<'_>> {
        on_env!(self, env => env.write_txn())
    }
}

/// A read transaction of either kind.
pub(crate) enum ReadTxn<'e> {
    WithTls(RoTxn<'e, WithTls>),
    WithoutTls(RoTxn<'e, WithoutTls>),
}

impl<'e> Deref for ReadTxn<'e> {
    type Target = RoTxn<'e, AnyTls>;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::WithTls(txn) => txn,
            Self::WithoutTls(txn) => txn,
        }
    }
}

/// What opens databases, of either kind.
pub(crate) enum Opener<'o, 'e> {
    WithTls(&'o DatabaseOpener<'e, WithTls>),
    WithoutTls(&'o DatabaseOpener<'e, WithoutTls>),
}

impl<'o, 'e> From<&'o DatabaseOpener<'e, WithTls>> for Opener<'o, 'e> {
    fn from(opener: &'o DatabaseOpener<'e, WithTls>) -> Self {
        Self::WithTls(opener)
    }
}

impl<'o, 'e> From<&'o DatabaseOpener<'e, WithoutTls>> for Opener<'o, 'e> {
    fn from(opener: &'o DatabaseOpener<'e, WithoutTls>) -> Self {
        Self::WithoutTls(opener)
    }
}

impl<'e> Opener<'_, 'e> {
    pub(crate) fn open(&self, txn: &RoTxn<'e>, name: Option<&str>) -> heed::Result<Option<Raw<'e>>> {
        match self {
            Self::WithTls(opener) => opener.open_database(txn, name),
            Self::WithoutTls(opener) => opener.open_database(txn, name),
        }
    }

    pub(crate) fn create(&self, txn: &mut RwTxn<'e>, name: &str, flags: heed::DatabaseFlags) -> heed::Result<Raw<'e>> {
        match self {
            Self::WithTls(opener) => {
                let mut options = opener.database_options().types();
                options.name(name).flags(flags).create(txn)
            }
            Self::WithoutTls(opener) => {
                let mut options = opener.database_options().types();
                options.name(name).flags(flags).create(txn)
            }
        }
    }
}

type Raw<'e> = heed::Database<'e, heed::types::Bytes, heed::types::Bytes>;
