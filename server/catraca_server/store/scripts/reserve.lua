-- Reserves a place in a user's index for a session that is about to be written, within the session limit.
-- KEYS[1]  the user's index: a sorted set of session ids, with the scores that attempts.py describes
-- ARGV[1]  the session id
-- ARGV[2]  the session's absolute deadline, Unix ms: the index has to last as long
-- ARGV[3]  how many sessions the user may have; 0: any number
-- ARGV[4]  1: evict the oldest to make room; 0: answer that the index is full
-- ARGV[5]  how many to evict at most
-- Returns the score (0: full), those that are being evicted (id and score in turn), and others: the oldest 1,000 if the
-- index is full, else a few at random.
local limit = tonumber(ARGV[3])
local own = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
if limit > 0 then
  local others = redis.call('ZCOUNT', KEYS[1], '(0', '+inf')
  if own > 0 then
    others = others - 1
  end
  local over = others + 1 - limit
  if over > 0 and ARGV[4] == '0' then
    return { '0', {}, redis.call('ZRANGEBYSCORE', KEYS[1], '(0', '+inf', 'WITHSCORES', 'LIMIT', 0, 1000) }
  end
  over = math.min(over, tonumber(ARGV[5]))
  local oldest = over > 0 and redis.call('ZRANGEBYSCORE', KEYS[1], '(0', '+inf', 'WITHSCORES', 'LIMIT', 0, over + 1) or {}
  for at = 1, #oldest, 2 do
    if over > 0 and oldest[at] ~= ARGV[1] then
      redis.call('ZADD', KEYS[1], '-' .. oldest[at + 1], oldest[at])
      over = over - 1
    end
  end
end
local now_us = clock_us()
local last = tonumber(redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2] or 0)
local score = as_text(math.max(sequence_at(now_us), sequence_at(math.floor(last / 2) + 1)))
redis.call('ZADD', KEYS[1], score, ARGV[1])
local lasts_ms = redis.call('PTTL', KEYS[1])
if lasts_ms < 0 or now_us / 1000 + lasts_ms < tonumber(ARGV[2]) then
  redis.call('PEXPIREAT', KEYS[1], ARGV[2])
end
return {
  score,
  redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(0', 'WITHSCORES'),
  redis.call('ZRANDMEMBER', KEYS[1], 4, 'WITHSCORES'),
}
