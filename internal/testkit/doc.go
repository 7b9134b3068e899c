// Package testkit is what tests of davit stand on: a private mount and
// network namespace, images, registries, a davitd of one's own, and the check
// that nothing stays behind.
//
// Only tests, and the programs below test/, import it. What it starts it ends.
//
//	func TestMain(m *testing.M) { testkit.Main(m) }
//
//	func TestPod(t *testing.T) {
//		testkit.Root(t)       // skips without root
//		testkit.Leftovers(t)  // first: its check runs last
//		...
//	}
package testkit
