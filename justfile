# Reads only: what a change must pass.
verify:
    .ci/run

# Writes: formats, and applies what clippy can.
fix:
    cargo clippy --workspace --all-targets --all-features --fix --allow-dirty --allow-staged
    cargo fmt --all

# The tests alone.
test *ARGS:
    cargo test --workspace --all-features {{ARGS}}

# Licences, advisories, duplicate dependencies.
deny:
    cargo deny check

# The figures of the README.
bench:
    cargo run --release -p replikv-cli --features jemalloc -- bench

# Every scenario, on every store, masters and slaves in processes of their own, with charts in target/charts. Takes long:
# docs/performance.md says which of them its figures are of.
bench-all ENTRIES="100000" ROUNDS="5":
    cargo run --release -p replikv-cli --features jemalloc -- bench --all --entries {{ENTRIES}} --rounds {{ROUNDS}} --plot target/charts

# The same work by Redis, NATS JetStream and level-master, in one table: the one of docs/performance.md. Installs what is missing
# (Debian), level-master below target/compare.
compare ENTRIES="250000" ROUNDS="5":
    compare/install.sh
    cargo test --workspace --all-features --test program -- --ignored level_master
    cargo run --release -p replikv-cli --features jemalloc -- bench redis nats level-master --stores lmdb,fjall,memory --entries {{ENTRIES}} --rounds {{ROUNDS}}

# What a comparison costs at a million entries: bytes and rounds, asserted; then the table of docs/recovery.md.
recovery:
    cargo test --release -p replikv-proto reconcile -- --ignored --nocapture
    cargo run --release --all-features --example recovery_cost -- 1000000 lmdb

# The hot paths of what decides, without a store: how long they take.
hot-paths:
    cargo bench -p replikv-proto --bench hot_paths

# How many instructions they take, beside crates/proto/benches/instructions.csv; `just instructions --update` writes that anew.
instructions *ARGS:
    cargo bench -p replikv-proto --bench instructions -- {{ARGS}}

# How often they allocate, and how much, beside crates/proto/benches/allocations.csv; `just allocations --update` writes that
# anew.
allocations *ARGS:
    cargo bench -p replikv-proto --bench allocations -- {{ARGS}}

# Seeded tests, over and over with new seeds.
soak ROUNDS="100":
    for i in $(seq {{ROUNDS}}); do REPLIKV_SEED=$RANDOM$i cargo test --workspace --all-features --test integration --test kill -- cross_backend:: cuts:: killed || exit 1; done

# Simulates masters and slaves with new seeds for so many hours (0.1 will do for a look): says how many seeds, simulated
# seconds and faults, and writes what fails to target/simulation-failures.txt, with the lines that repeat it.
simulate HOURS="1":
    REPLIKV_SIM_SECONDS=$(awk 'BEGIN { printf "%d", {{HOURS}} * 3600 }') REPLIKV_SIM_FAILURES={{justfile_directory()}}/target/simulation-failures.txt cargo test --release -p replikv-testkit --test sim -- --ignored --nocapture --exact campaign

# The same failure as that of a seed, made smaller: `REPLIKV_SIM_BUG=AckOnArrival just shrink 1` tries it on a planted bug.
shrink SEED:
    REPLIKV_SIM_SHRINK=1 REPLIKV_SIM_SEED={{SEED}} cargo test -p replikv-testkit --features planted-bugs --test sim -- --nocapture --exact the_seed_of_the_environment_holds

# The tokio shell over a simulated network, with so many new seeds.
network SEEDS="100":
    for i in $(seq {{SEEDS}}); do REPLIKV_NETWORK_SEED=$(od -An -N4 -tu4 /dev/urandom | tr -d ' ') cargo test --quiet -p replikv-node --test network -- --exact the_seed_of_the_environment_holds || exit 1; done

# Looks for every bug that can be planted, and says which invariant found it. Bugs are never built for release.
planted:
    cargo test -p replikv-testkit --features planted-bugs --test sim_planted -- --include-ignored --nocapture

# One fuzz target (decoder, record, session, applier) for so many seconds; what it finds new stays out of the corpus.
fuzz TARGET SECONDS="60":
    mkdir -p fuzz/target/corpus/{{TARGET}}
    cd fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz run -s none {{TARGET}} target/corpus/{{TARGET}} corpus/{{TARGET}} -- -max_total_time={{SECONDS}} -max_len=4096

# Every fuzz target for an hour.
fuzz-long: (fuzz "decoder" "3600") (fuzz "record" "3600") (fuzz "session" "3600") (fuzz "applier" "3600")

# So many states that power loss can leave, of each backend and role, and what they hold.
crash STATES="100000" *ARGS:
    cd crash && cargo run --release -- --states {{STATES}} {{ARGS}}

# Masters and slaves over TCP, on real stores, killed so often each.
kill-loop CYCLES="1000":
    REPLIKV_KILLS={{CYCLES}} cargo test --release --all-features --test kill -- --nocapture --test-threads 6

# Fenced promotions in so many worlds, in which nodes are cut off and lose power: says how many came about, and how many
# acknowledged writes were looked for afterwards. `REPLIKV_SEED` begins elsewhere.
fenced-failovers RUNS="1000":
    REPLIKV_FENCED_RUNS={{RUNS}} cargo test --release -p replikv-node --all-features --test node -- --nocapture fenced_failovers

# Aggregates of a hundred masters and their centre, killed all the while, against a recomputation, after so many operations.
aggregates OPERATIONS="1000000":
    REPLIKV_OPERATIONS={{OPERATIONS}} cargo test --release -p replikv-node --all-features --test aggregate -- --nocapture a_hundred_masters

# What compaction by key costs the writer, and what it leaves.
compaction OVERWRITES="10000000" KEYS="100000" STORE="lmdb":
    cargo run --release --all-features --example compaction_cost -- {{OVERWRITES}} {{KEYS}} {{STORE}}

# Every mutant of what decides and of the contract, built all at once: which of them no test of replikv-core and replikv-proto
# notices, but for those of mutants/missed.tsv. Some minutes, or seconds after the first time; `just mutants --only session` for
# those of a part, `just mutants --also replikv-node` for what the tests of another crate notice of the rest.
mutants *ARGS:
    cargo mutants --version || cargo install --locked cargo-mutants --version 27.1.0
    cargo run --quiet --locked --manifest-path mutants/Cargo.toml -- {{ARGS}}

# Those whose name matches, built one by one: for mutants that do not compile as branches (target/mutants/refused). Slow.
mutants-alone REGEX:
    mkdir -p target/mutants/alone
    cargo mutants -p replikv-proto -p replikv-core --re {{quote(REGEX)}} -o target/mutants/alone
