package model

import "fmt"

// lines is how many lines the page has: the poisoned one in the middle, one in
// front of it and one behind.
const (
	lines   = 3
	badLine = 1
)

// value is the content of one line.
type value uint8

const (
	lost    value = iota // poison: there is none
	old                  // what was there before all
	zero                 // nothing
	garbage              // what a cleared line holds until it is written
	first                // by the first writer
	second               // by the second one
	mapped               // by a store into a mapping
	foreign              // by another program, past the engine
)

const valueNames = "X.0?ABMF"

func (v value) set() values { return 1 << v }

type page [lines]value

func (p page) String() string {
	b := make([]byte, lines)
	for i, v := range p {
		b[i] = valueNames[v]
	}
	return string(b)
}

// values is a set of values.
type values uint8

func (s values) has(v value) bool { return s>>v&1 != 0 }

// mask is a set of lines.
type mask uint8

const all mask = 1<<lines - 1

func line(i int) mask         { return 1 << i }
func (m mask) has(i int) bool { return m>>i&1 != 0 }

// poison is what the medium does when the page is read.
type poison uint8

const (
	none   poison = iota
	latent        // comes short in front of the line, once; writes don't see it
	listed        // fails as a whole; only a write of the whole page clears it
)

// medium is the page and what of the inode belongs to it.
type medium struct {
	line   page
	poison poison
	hole   bool
	moved  bool // in another block than at first, since the first was punched
	grown  bool // the file ends at the end of the page, not within it
	ctime  uint8
}

// row is the ledger's word on a line.
type row uint8

const (
	noRow row = iota
	rowLost
	rowReinitialized
	rowOverwritten
	rowHealed
)

type rows [lines]row

// intent is one of the journal. Journal.Begin is durable when it returns; that it is
// closed may be known to the daemon first (engine.closing).
type intent struct {
	open, hasImage, punched   bool
	image                     page // without an image: the checksum
	lost, missing, overwrites mask
	sized                     bool  // it knows the size
	boot, time                uint8 // time: of the clock, when it was made or renewed
}

// engine is what dies with the daemon.
type engine struct {
	exclusive     int8 // holder of the inode's lock + 1
	shared        mask // holders of it shared, one bit each
	epoch, writes uint8
	known         bool // Inode.damage is set
	bad           bool // the page is known bad
	closing       bool // the intent is closed but for the disk (closings)
}

// salvaged is the image of a bad page, in the journal's salvage area.
type salvaged struct {
	has     bool
	line    page
	missing mask
}

// cache is the kernel's page of a mapped file.
type cache struct {
	holder int8 // of the page's lock + 1
	valid  bool
	line   page
}

// actor is a program in the middle of its steps.
type actor struct {
	pc       uint8
	answered bool
	started  bool
	buf      page // what was read, or what the page shall hold
	have     mask // lines of buf that count
	written  mask // of a repair: what is certainly the application's
	plain    bool // of a repair: the intent has no image
	ended    bool // the read reached behind the file's end
	made     bool // an attempt, or a salvage, without the lock; of replay: the page is cleared
	newer    bool // of replay: newer data is kept; the losses are what it left
	epoch    uint8
	writes   uint8
	dead     [lines]values // may not be returned by this read
	kills    [lines]values // what this write outdates, once it is answered or seen
	wrong    bool          // it was given what it may not be given
}

type phase uint8

const (
	serving phase = iota
	down
	replaying
)

// ghost is what an observer knows, who sees every request and answer.
type ghost struct {
	can    [lines]values // what ever was there
	dead   [lines]values // what was replaced, and that was told
	synced [lines]values // dead for good: told by an fsync
	noZero mask          // lines whose zeros were replaced by a write that was answered, then synced
}

// state is everything. It is a comparable value: the checker's key.
type state struct {
	now, disk      medium // as programs see it, and what a power cut leaves
	intents        [2]intent
	rows, rowsDisk rows
	image          salvaged
	engine         engine
	cache          cache
	actors         [3]actor
	replay         actor
	at             uint8 // intent that is replayed
	ghost          ghost
	phase          phase
	boot           uint8
	crashes, alien uint8 // that may still come
	restarted      bool
	clock          uint8 // goes on by more than the slack
	hasty          bool  // another program wrote within the slack, or what nobody synced
	mixed          bool  // another program wrote a part of the page
	kept           mask  // lines that the image of a conflict holds
}

func (s *state) brief() string {
	b := fmt.Sprintf("now %v", s.now.line)
	b += [...]string{"", " latent", " listed"}[s.now.poison]
	if s.now.hole {
		b += " hole"
	}
	if s.now.grown {
		b += " grown"
	}
	b += fmt.Sprintf(", disk %v%s", s.disk.line, [...]string{"", " latent", " listed"}[s.disk.poison])
	for _, in := range s.intents {
		if in.open {
			b += fmt.Sprintf(", intent %v", in.image)
		}
	}
	return b + fmt.Sprintf(", rows %s/%s", s.rows, s.rowsDisk)
}

func (r rows) String() string {
	b := make([]byte, lines)
	for i, v := range r {
		b[i] = "-LROH"[v]
	}
	return string(b)
}
