package recover

import (
	"encoding/binary"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/mendfs/mendfs/tests/harness"
)

const rowCount = 3000

// database makes a database of pages of 4096 bytes with a table t of rowCount
// rows, and free pages that a table had which is dropped.
func database(t *testing.T, m *harness.Mount) {
	t.Helper()
	harness.Need(t, harness.Program("sqlite3"))
	m.Sh(`sqlite3 db "PRAGMA page_size = 4096;
CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT);
CREATE TABLE dropped (id INTEGER PRIMARY KEY, body TEXT);
WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < ` + fmt.Sprint(rowCount) + `)
INSERT INTO t SELECT x, 'row ' || x || printf('%.200c', 'x') FROM c;
INSERT INTO dropped SELECT * FROM t;
DROP TABLE dropped;"`)
}

// freeLeaves are the pages on the free list that have no content of their own, by the
// file format: the header names the first trunk page and each trunk page its leaves.
func freeLeaves(db []byte) []int64 {
	var leaves []int64
	u32 := func(at int64) int64 { return int64(binary.BigEndian.Uint32(db[at:])) }
	for trunk := u32(32); trunk != 0; trunk = u32((trunk - 1) * page) {
		at := (trunk - 1) * page
		for i := range u32(at + 4) {
			leaves = append(leaves, u32(at+8+4*i))
		}
	}
	return leaves
}

func TestSQLiteWithPoisonedFreePages(t *testing.T) {
	eachProfile(t, func(t *testing.T, m *harness.Mount, lost func(rng) rng) {
		database(t, m)
		leaves := freeLeaves(readFile(t, m.Path("db")))
		if len(leaves) < 50 {
			t.Fatalf("only %d free pages", len(leaves))
		}
		for i, n := range leaves {
			if i%5 == 0 {
				m.Inject("db", rng{Off: (n-1)*page + 256, Len: 1})
			}
		}
		if out := m.Sh(`sqlite3 db "PRAGMA integrity_check"`); out != "ok\n" {
			t.Errorf("integrity_check: %s", out)
		}
		// The free pages get used again, which is an overwrite that cures.
		m.Sh(`sqlite3 db "CREATE TABLE again AS SELECT * FROM t"`)
		out := m.Sh(`sqlite3 db "PRAGMA integrity_check; SELECT count(*), sum(id) FROM again; PRAGMA freelist_count"`)
		if want := fmt.Sprintf("ok\n%d|%d\n", rowCount, rowCount*(rowCount+1)/2); !strings.HasPrefix(out, want) {
			t.Errorf("after using the free pages again: %s", out)
		}
		free := map[int64]bool{}
		for _, n := range freeLeaves(readFile(t, m.Path("db"))) {
			free[n] = true
		}
		for i, n := range leaves {
			if i%5 == 0 && !free[n] {
				m.Cured("db", rng{Off: (n - 1) * page, Len: page})
			}
		}
	})
}

func TestSQLiteRecoversTheRowsOfOtherPages(t *testing.T) {
	m := harness.Simulated(t, "dax")
	database(t, m)
	// A leaf in the middle of the table, and the number of rows on it.
	leaf := strings.Split(strings.TrimSpace(m.Sh(
		`sqlite3 db "SELECT pageno, ncell FROM dbstat WHERE name = 't' AND pagetype = 'leaf' ORDER BY path LIMIT 1 OFFSET 40"`)), "|")
	number, err := strconv.ParseInt(leaf[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	onLeaf, err := strconv.Atoi(leaf[1])
	if err != nil {
		t.Fatal(err)
	}
	bad := rng{Off: (number - 1) * page, Len: page}
	data := readFile(t, m.Path("db"))
	m.Inject("db", bad)

	out := filepath.Join(harness.Dir(t), "recovered")
	m.Sh(`sqlite3 db "`+rescue(t, m)+`" >"$1.sql" 2>/dev/null || true
sed -e 's/^ROLLBACK.*/COMMIT;/' -e 's/^INSERT INTO/INSERT OR IGNORE INTO/' "$1.sql" | sqlite3 "$1" 2>/dev/null || true`, out)
	got := m.Sh(`sqlite3 "$1" "SELECT count(*), sum(body = 'row ' || id || printf('%.200c', 'x')) FROM t"`, out)
	if want := fmt.Sprintf("%d|%d\n", rowCount-onLeaf, rowCount-onLeaf); got != want {
		t.Errorf("rows recovered, and right: %s, want %s", got, want)
	}
	m.Check("db", data, bad)
}

// rescue is the shell's command that gets rows out of a damaged database:
// .recover where the sqlite3 here can (it needs the dbpage table, which
// Debian 12's was built without), else .dump, which also goes on behind
// damage.
func rescue(t *testing.T, m *harness.Mount) string {
	t.Helper()
	whole := filepath.Join(harness.Dir(t), "whole")
	if r := m.TrySh(`sqlite3 "$1" "CREATE TABLE t (a); INSERT INTO t VALUES (1)"; sqlite3 "$1" .recover | grep -q "INSERT"`, whole); r.Exit == 0 {
		return ".recover"
	}
	t.Log("this sqlite3 can't .recover even a sound database; .dump has to do")
	return ".dump"
}
