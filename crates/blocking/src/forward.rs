//! What every store on threads says in the same words.

/// Implements `ReplicaStore` for a store by the [`Threaded`](crate::Threaded) in a field of its own.
///
/// With `before close: METHOD` the store's `METHOD(&self)` is called first when it is closed.
///
/// ```ignore
/// struct MyStore {
///     threaded: Threaded<Blocking>,
/// }
///
/// replikv_blocking::store_on_threads!(MyStore, threaded);
/// ```
#[macro_export]
macro_rules! store_on_threads {
    ($store:ty, $threaded:ident $(, before close: $before:ident)?) => {
        #[$crate::__async_trait]
        impl $crate::__core::ReplicaStore for $store {
            async fn apply(
                &self,
                writes: $crate::__core::WriteSet,
                durability: $crate::__core::Durability,
            ) -> ::std::result::Result<(), $crate::__core::StoreError> {
                self.$threaded.apply(writes, durability).await
            }

            async fn get(
                &self,
                keyspace: $crate::__core::Keyspace,
                key: &[u8],
            ) -> ::std::result::Result<::std::option::Option<$crate::__Bytes>, $crate::__core::StoreError> {
                self.$threaded.get(keyspace, key).await
            }

            async fn get_many(
                &self,
                keyspace: $crate::__core::Keyspace,
                keys: &[$crate::__Bytes],
            ) -> ::std::result::Result<
                ::std::vec::Vec<::std::option::Option<$crate::__Bytes>>,
                $crate::__core::StoreError,
            > {
                self.$threaded.get_many(keyspace, keys).await
            }

            async fn scan(
                &self,
                keyspace: $crate::__core::Keyspace,
                range: $crate::__core::KeyRange,
                options: $crate::__core::ScanOptions,
            ) -> ::std::result::Result<$crate::__core::Page, $crate::__core::StoreError> {
                self.$threaded.scan(keyspace, range, options).await
            }

            async fn sync(&self) -> ::std::result::Result<(), $crate::__core::StoreError> {
                self.$threaded.sync().await
            }

            async fn reopen(&self) -> ::std::result::Result<(), $crate::__core::StoreError> {
                self.$threaded.reopen().await
            }

            async fn close(&self) -> ::std::result::Result<(), $crate::__core::StoreError> {
                $(self.$before();)?
                self.$threaded.close().await
            }

            fn limits(&self) -> $crate::__core::StoreLimits {
                self.$threaded.limits()
            }

            fn preferred_write_set(&self) -> usize {
                self.$threaded.preferred_write_set()
            }

            fn preferred_operations(&self) -> usize {
                self.$threaded.preferred_operations()
            }

            fn stats(&self) -> $crate::__core::StoreStats {
                self.$threaded.stats()
            }
        }
    };
}
