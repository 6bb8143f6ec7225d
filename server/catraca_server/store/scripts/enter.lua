-- Enters a session into its user's index before it is written, within the limit.
--
-- The index is a sorted set of session ids. A score is a number that grows with every entry of the user: the store's
-- clock in microseconds, doubled. An even one is an attempt to write the session, the odd one after it says that it was
-- written. A negative one marks a session that has to end to make room, until it has.
--
-- KEYS[1]  the user's index
-- ARGV[1]  the session id
-- ARGV[2]  the session's absolute deadline, Unix ms: the index has to last as long
-- ARGV[3]  how many sessions the user may have; 0: any number
-- ARGV[4]  1: mark the oldest to make room; 0: answer that it is full
-- ARGV[5]  how many to mark at the most
-- Returns the score (0: full), the marked (id and score in turn), and a few others: all if it is full, else at random.
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
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local score = string.format('%.0f', 2 * math.max(now, math.floor(tonumber(last[2] or 0) / 2) + 1))
redis.call('ZADD', KEYS[1], score, ARGV[1])
local lasts = redis.call('PTTL', KEYS[1])
if lasts < 0 or now / 1000 + lasts < tonumber(ARGV[2]) then
  redis.call('PEXPIREAT', KEYS[1], ARGV[2])
end
return {
  score,
  redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(0', 'WITHSCORES'),
  redis.call('ZRANDMEMBER', KEYS[1], 4, 'WITHSCORES'),
}
