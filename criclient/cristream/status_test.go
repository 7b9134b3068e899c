package cristream

import (
	"errors"
	"strings"
	"testing"
)

// A status is one of the outcomes, whatever it is.
func FuzzOutcome(f *testing.F) {
	for _, text := range []string{
		`{"status":"Success"}`,
		`{"status":"Failure","message":"no","reason":"InternalError","code":500}`,
		`{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"42"}]}}`,
		`{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"-1"},null]}}`,
		`{"status":"Failure","reason":"NonZeroExitCode","details":null}`, `[]`, `null`, `no JSON`, ``,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		err := outcome(text)
		var exit *ExitError
		switch {
		case err == nil:
			if !strings.Contains(string(text), "uccess") && !strings.Contains(string(text), `\u`) {
				t.Errorf("%q is a success", text)
			}
		case errors.As(err, &exit):
			if exit.Code <= 0 {
				t.Errorf("%q has the exit code %d", text, exit.Code)
			}
		case err.Error() == "":
			t.Errorf("%q has no text", text)
		}
		_ = plainMessage(text)
	})
}
