-- Commits a login: its session has been written.
-- KEYS[1]  the user's index
-- ARGV[1]  the session id
-- ARGV[2]  the login's sequence
-- Returns 1 if the index names the session, even for another login; else 0.
local score = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
if math.abs(score) == tonumber(ARGV[2]) then
  redis.call('ZADD', KEYS[1], as_text(committed(score)), ARGV[1])
end
return score ~= 0 and 1 or 0
