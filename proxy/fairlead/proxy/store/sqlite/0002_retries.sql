-- Automatic retries: how many attempts a run may have, how many failed, and when the next one is due.

ALTER TABLE runs ADD COLUMN attempts_max INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN attempts_failed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN not_before_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE attempts ADD COLUMN retry_at_ms INTEGER;
