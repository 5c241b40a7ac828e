// Package model holds no code of the program: its tests explore a small model
// of the repair protocol (design, Writing) in every interleaving of readers,
// writers, a mapping's writeback, crashes, power cuts, other programs and
// replay, and check that no promise is broken in any state. Every step of the
// model names the function of package recovery that it follows; a test reorders
// the steps one by one, and each time the exploration must find the harm.
// docs/protocol.md says what is covered and what is not.
package model
