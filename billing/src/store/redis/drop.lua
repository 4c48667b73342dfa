#!lua
-- Drops the records of sessions that were held before a time and have ended. One that was held anew meanwhile stays, and so
-- does one that is open.
--
-- KEYS  1 the account's sessions, by the time of their hold   2 its open sessions   then the record of each session
-- ARGV  1 the time   then the id of each session
-- Answers how many were dropped.
local call = redis.call
local dropped = 0
for n = 2, #ARGV do
    local held_at = call('ZSCORE', KEYS[1], ARGV[n])
    if held_at and tonumber(held_at) < tonumber(ARGV[1]) and call('SISMEMBER', KEYS[2], ARGV[n]) == 0 then
        call('DEL', KEYS[n + 1])
        call('ZREM', KEYS[1], ARGV[n])
        dropped = dropped + 1
    end
end
return dropped
