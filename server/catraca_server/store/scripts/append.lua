-- Appends events to the feed. Each entry names the one before it, so that a reader can prove that none is missing.
-- KEYS[1]  the feed, a stream
-- ARGV[1]  entries are kept at least this long, ms
-- ARGV[2]  how many entries are kept at most, roughly
-- ARGV[3]  how long the feed outlives its last entry, ms
-- ARGV     then for each event: its type, cause, session id and user id
-- Returns how many it appended.
local time = redis.call('TIME')
local keep_from_ms = time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(ARGV[1])
-- First, also because a script that has written may go on writing when memory is full: ends must get into the feed.
redis.call('XTRIM', KEYS[1], 'MINID', '~', string.format('%.0f', keep_from_ms))
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local previous = last and last[1] or '0-0'
local appended = 0
for at = 4, #ARGV, 4 do
  previous = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'prev', previous, 'type', ARGV[at],
    'cause', ARGV[at + 1], 'session_id', ARGV[at + 2], 'user_id', ARGV[at + 3])
  appended = appended + 1
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return appended
