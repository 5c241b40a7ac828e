// Package guest holds the tests that run in the lab's guest, on a real kernel's
// persistent memory with media errors (tests/lab). They have the build tag "lab":
// elsewhere there is nothing that they could run on.
package guest
