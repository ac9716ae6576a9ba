//! Certifies stores of replikv: the conformance suite, fault injection, oracles.
